//! Where a block may begin in the middle of a stream.

use crate::input::mask;

/// The first bit from `from` on that may begin a block with dynamic codes that is not the last one (RFC 1951, 3.2.3 and
/// 3.2.7): by the kind, the counts of codes, and the codes for code lengths, which must fill their space exactly. Of
/// random bits one in some thousands does. The last 16 bytes are not looked at.
pub(crate) fn candidate(bytes: &[u8], from: u64) -> Option<u64> {
    /// Each step looks at so many bits of a word; the others belong to what begins there.
    const STEP: u32 = 48;
    let (mut at, mut before) = (usize::try_from(from / 8).ok()?, (from % 8) as u32);
    loop {
        let word = word(bytes, at)?;
        // 30 and 31 are no counts: their upper four bits are all set.
        let too_many =
            |shift: u32| word >> (shift + 1) & word >> (shift + 2) & word >> (shift + 3) & word >> (shift + 4);
        let dynamic = !word & !(word >> 1) & word >> 2;
        let mut places = dynamic & !too_many(3) & !too_many(8) & mask(STEP) & !mask(before);
        while places != 0 {
            let place = 8 * at as u64 + u64::from(places.trailing_zeros());
            if complete(bytes, place)? {
                return Some(place);
            }
            places &= places - 1;
        }
        (at, before) = (at + STEP as usize / 8, 0);
    }
}

/// The codes for code lengths of the block at `place` fill their space.
fn complete(bytes: &[u8], place: u64) -> Option<bool> {
    let bits = |from: u64| Some(word(bytes, (from / 8) as usize)? >> (from % 8));
    let count = 4 + (bits(place + 13)? & 15) as u32;
    // 57 bits at most, which is what a word has whatever the bit.
    let lengths = bits(place + 17)? & mask(3 * count);
    let space: u16 = (0..5).map(|four| SPACE[(lengths >> (12 * four) & 0xfff) as usize]).sum();
    Some(space == 128)
}

/// How much of 128 four lengths of codes take.
static SPACE: [u16; 1 << 12] = {
    let mut all = [0; 1 << 12];
    let mut lengths = 0;
    while lengths < all.len() {
        let mut rest = lengths;
        while rest > 0 {
            if rest & 7 > 0 {
                all[lengths] += 128 >> (rest & 7);
            }
            rest >>= 3;
        }
        lengths += 1;
    }
    all
};

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}
