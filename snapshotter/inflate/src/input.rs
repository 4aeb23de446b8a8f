//! Bits out of slices of bytes that come one behind the other.

/// What is left of a slice of input, with the bits before it that are not used yet. Bits are used from the lowest of each
/// byte (RFC 1951, 3.1.1).
///
/// Nothing that is asked of it at once has more than [`FILLED`] bits, so whatever a slice ends in the middle of waits in
/// `buffer` as a whole.
pub(crate) struct Input<'a> {
    pub(crate) bytes: &'a [u8],
    /// How many of `bytes` are in the buffer or were there.
    pub(crate) at: usize,
    pub(crate) buffer: u64,
    /// How many bits the buffer has; those above are nothing or what follows anyway.
    pub(crate) count: u32,
}

/// So many bits there are after filling, unless the slice ends.
pub(crate) const FILLED: u32 = 56;

impl<'a> Input<'a> {
    /// Goes on with `bytes` behind the bits that were [left](Input::rest) before.
    pub(crate) fn new(bytes: &'a [u8], (buffer, count): (u64, u32)) -> Input<'a> {
        Input { bytes, at: 0, buffer, count }
    }

    /// What is to be remembered until the next slice comes.
    pub(crate) fn rest(&self) -> (u64, u32) {
        (self.buffer & mask(self.count), self.count)
    }

    /// Fills the buffer as far as the slice goes.
    #[inline]
    pub(crate) fn fill(&mut self) {
        let word = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        if let Some(word) = word {
            self.buffer |= u64::from_le_bytes(*word) << self.count;
            self.at += ((63 - self.count) >> 3) as usize;
            self.count |= FILLED;
            return;
        }
        while self.count < FILLED
            && let Some(byte) = self.bytes.get(self.at)
        {
            self.buffer |= u64::from(*byte) << self.count;
            self.at += 1;
            self.count += 8;
        }
    }

    /// The next `count` bits (at most [`FILLED`]), if they have come.
    #[inline]
    pub(crate) fn take(&mut self, count: u32) -> Option<u64> {
        if self.count < count {
            self.fill();
        }
        (self.count >= count).then(|| {
            let bits = self.buffer & mask(count);
            self.drop(count);
            bits
        })
    }

    /// Uses bits that are there.
    #[inline]
    pub(crate) fn drop(&mut self, count: u32) {
        self.buffer >>= count;
        self.count -= count;
    }

    /// Uses what is left of a byte.
    pub(crate) fn align(&mut self) {
        self.drop(self.count % 8);
    }

    /// Puts whole bytes that are in the buffer back to the slice.
    pub(crate) fn give_back(&mut self) {
        let bytes = (self.count as usize / 8).min(self.at);
        self.at -= bytes;
        // At most seven.
        self.count -= 8 * bytes as u32;
        self.buffer &= mask(self.count);
    }
}

/// The lowest `count` bits, at most 63.
#[inline]
pub(crate) fn mask(count: u32) -> u64 {
    (1 << count) - 1
}
