//! One header block: a view of 512 bytes.

use super::BLOCK;

/// A header block whose checksum is right.
pub(super) struct HeaderBlock<'a>(&'a [u8; BLOCK]);

/// What the eight bytes of magic and version say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Neither: the fields behind the link name mean nothing.
    V7,
    /// POSIX: the end of the block holds a prefix of the name.
    Ustar,
    /// GNU: the end of the block holds times and a sparse map.
    Gnu,
}

impl<'a> HeaderBlock<'a> {
    /// The view of `block`, unless its checksum is wrong.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Result<HeaderBlock<'a>, &'static str> {
        let header = HeaderBlock(block);
        let expected = number(&block[148..156])?;
        // Old programs summed signed characters.
        let (unsigned, signed) = header.sums();
        if expected == unsigned || expected == signed {
            return Ok(header);
        }
        Err("wrong header checksum")
    }

    fn sums(&self) -> (i64, i64) {
        let counted = self.0[..148].iter().chain(&[b' '; 8]).chain(&self.0[156..]);
        counted.fold((0, 0), |(unsigned, signed), &byte| {
            (unsigned + i64::from(byte), signed + i64::from(byte.cast_signed()))
        })
    }

    pub(super) fn flavour(&self) -> Flavour {
        match &self.0[257..265] {
            b"ustar  \0" => Flavour::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Flavour::Ustar,
            _ => Flavour::V7,
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that `ustar` keeps apart.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.flavour() == Flavour::Ustar { text(&self.0[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<i64, &'static str> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Result<i64, &'static str> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Result<i64, &'static str> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Result<i64, &'static str> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Result<i64, &'static str> {
        number(&self.0[136..148])
    }

    /// Major and minor number; zero in the old format, which has none.
    pub(super) fn device(&self) -> Result<(i64, i64), &'static str> {
        if self.flavour() == Flavour::V7 {
            return Ok((0, 0));
        }
        Ok((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }

    /// GNU: the four map entries of a sparse file's header.
    pub(super) fn sparse_map(&self) -> &'a [u8] {
        &self.0[386..482]
    }

    /// GNU: whether blocks with more of the sparse map follow.
    pub(super) fn sparse_continues(&self) -> bool {
        self.0[482] != 0
    }

    /// GNU: the size of a sparse file with its holes.
    pub(super) fn sparse_size(&self) -> Result<i64, &'static str> {
        number(&self.0[483..495])
    }
}

/// The bytes in front of the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits amid blanks and NULs, or, marked by the first bit, big-endian two's complement.
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field),
        _ => octal(field),
    }
}

fn binary(field: &[u8]) -> Result<i64, &'static str> {
    // The sign is the second bit of the first byte.
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (index, &byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = (value << 8) | i128::from(byte);
        if i64::try_from(value).is_err() {
            return Err("a number is too large");
        }
    }
    i64::try_from(value).map_err(|_| "a number is too large")
}

fn octal(field: &[u8]) -> Result<i64, &'static str> {
    let start = field.iter().position(|&byte| byte != b' ' && byte != 0).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|&byte| byte == b' ' || byte == 0).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + i64::from(byte - b'0')).ok_or("a number is too large"),
        _ => Err("a number has characters that are no digits"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_marked_binary() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"77777777"), Ok(0o77777777));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Ok(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff"), Ok(-1));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
        assert!(number(b"12x4567\0").is_err());
        assert!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    }
}
