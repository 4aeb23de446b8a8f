//! Maps of sparse files: where in the file the archived bytes belong.

use super::header::number;
use super::pax::decimal;

/// A piece of a file that is not a hole, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The segments in a GNU header or continuation block: pairs of twelve-byte numbers, ended by an empty one.
pub(super) fn gnu_segments(map: &[u8], segments: &mut Vec<Segment>) -> Result<(), &'static str> {
    for pair in map.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        let offset = u64::try_from(number(&pair[..12])?).map_err(|_| BAD)?;
        let length = u64::try_from(number(&pair[12..])?).map_err(|_| BAD)?;
        segments.push(Segment { offset, length });
    }
    Ok(())
}

/// The segments of PAX format 0.1: `OFFSET,LENGTH,OFFSET,LENGTH,…`.
pub(super) fn comma_segments(map: &[u8]) -> Result<Vec<Segment>, &'static str> {
    if map.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Option<Vec<u64>> = map.split(|&byte| byte == b',').map(decimal).collect();
    pairs(&numbers.ok_or(BAD)?)
}

/// Segments out of alternating offsets and lengths.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, &'static str> {
    if !numbers.len().is_multiple_of(2) {
        return Err(BAD);
    }
    Ok(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
}

/// Checks that segments are in order, apart, within `size`, and are `stored` bytes together; leaves out empty ones.
pub(super) fn checked(mut segments: Vec<Segment>, size: u64, stored: u64) -> Result<Vec<Segment>, &'static str> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(BAD);
        }
        end = segment.offset.checked_add(segment.length).ok_or(BAD)?;
        sum += segment.length;
    }
    if end > size || sum != stored {
        return Err(BAD);
    }
    segments.retain(|segment| segment.length > 0);
    Ok(segments)
}

pub(super) const BAD: &str = "inconsistent sparse map";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_overlap_overflow_or_do_not_add_up_are_refused() {
        let map = |pairs: &[(u64, u64)]| -> Vec<Segment> {
            pairs.iter().map(|&(offset, length)| Segment { offset, length }).collect()
        };
        assert!(checked(map(&[(0, 5), (10, 5)]), 20, 10).is_ok());
        assert!(checked(map(&[(0, 5), (4, 5)]), 20, 10).is_err());
        assert!(checked(map(&[(10, 5), (0, 5)]), 20, 10).is_err());
        assert!(checked(map(&[(0, 5), (16, 5)]), 20, 10).is_err());
        assert!(checked(map(&[(u64::MAX, 2)]), u64::MAX, 2).is_err());
        assert!(checked(map(&[(0, 5)]), 20, 6).is_err());
        assert_eq!(checked(map(&[(0, 5), (20, 0)]), 20, 5), Ok(map(&[(0, 5)])));
    }
}
