//! Deltas in packs: how one object is made from another.
//!
//! Pure. Every length is checked before anything is allocated or copied.

use super::inflate::reserve;
use crate::error::{Error, Kind, Result};

/// Returns the object that `delta` makes from `base`; refuses a delta that was made for another base.
pub(super) fn apply(base: &[u8], delta: &[u8]) -> Result<Vec<u8>> {
    let sizes = decode_sizes(delta).ok_or_else(|| damaged("has no sizes"))?;
    if sizes.base != base.len() as u64 {
        return Err(damaged("is for a base of another size"));
    }
    let steps = &delta[sizes.length..];
    // The steps are walked twice, so that only a size that they really give is allocated.
    let mut size = 0;
    walk(base, steps, |part| size += part.len() as u64)?;
    if size != sizes.result {
        return Err(damaged("makes another size than it says"));
    }
    let mut result = Vec::new();
    reserve(&mut result, size)?;
    walk(base, steps, |part| result.extend_from_slice(part))?;
    Ok(result)
}

/// What a delta says at its start.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Bytes of the object that it is applied to.
    pub base: u64,
    /// Bytes of the object that it makes.
    pub result: u64,
    /// Bytes that the two numbers take.
    length: usize,
}

/// At most this many bytes are needed by [`decode_sizes`].
pub(super) const MAX_SIZES: usize = 20;

/// Decodes the sizes at the start of a delta; `None` if they are cut short or too large for 63 bits.
pub(super) fn decode_sizes(delta: &[u8]) -> Option<Sizes> {
    let (base, n_base) = decode_number(delta)?;
    let (result, n_result) = decode_number(&delta[n_base..])?;
    Some(Sizes { base, result, length: n_base + n_result })
}

/// Decodes a number with seven bits in each byte, lowest first, and returns its length in bytes too.
fn decode_number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, at + 1));
        }
    }
    None
}

/// Hands `take` the parts of the result in their order.
fn walk<'a>(base: &'a [u8], mut steps: &'a [u8], mut take: impl FnMut(&'a [u8])) -> Result<()> {
    while let Some((&step, rest)) = steps.split_first() {
        let part;
        (part, steps) = if step & 0x80 == 0 { literal(step, rest) } else { copy(base, step, rest) }?;
        take(part);
    }
    Ok(())
}

fn literal(step: u8, rest: &[u8]) -> Result<(&[u8], &[u8])> {
    match step {
        0 => Err(damaged("has a step of no known kind")),
        n => rest.split_at_checked(n.into()).ok_or_else(|| damaged("is cut short")),
    }
}

/// A copy: each of the low seven bits says whether one byte of offset or size follows.
fn copy<'a>(base: &'a [u8], step: u8, mut rest: &'a [u8]) -> Result<(&'a [u8], &'a [u8])> {
    let mut number = [0u8; 8];
    // The four bytes of the offset come first, then three of the size.
    for bit in (0..7).filter(|bit| step >> bit & 1 != 0) {
        let (&byte, after) = rest.split_first().ok_or_else(|| damaged("is cut short"))?;
        (number[bit], rest) = (byte, after);
    }
    let number = u64::from_le_bytes(number);
    let (offset, size) = ((number & 0xffff_ffff) as usize, (number >> 32) as usize);
    let size = if size == 0 { 0x10000 } else { size };
    let part = base.get(offset..).and_then(|tail| tail.get(..size));
    Ok((part.ok_or_else(|| damaged("copies from beyond its base"))?, rest))
}

fn damaged(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("a delta {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(base: &[u8], delta: &[u8], expected: std::result::Result<&[u8], &str>) {
        let result = apply(base, delta).map_err(|error| error.to_string());
        assert_eq!(result.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn a_delta_copies_and_inserts() {
        check(b"hello world", &[11, 8, 0x91, 6, 5, 3, b'!', b'!', b'!'], Ok(b"world!!!"));
        check(b"abc", &[3, 0], Ok(b""));
        let base: Vec<u8> = (0..70_000u32).map(|n| (n / 3) as u8).collect();
        check(&base, &[0xf0, 0xa2, 4, 0x80, 0x80, 4, 0x81, 5], Ok(&base[5..0x10005]));
        check(&base, &[0xf0, 0xa2, 4, 1, 0x93, 1, 1, 1], Ok(&base[257..258]));
    }

    #[test]
    fn a_delta_that_does_not_hold_is_refused() {
        check(b"abc", b"", Err("a delta has no sizes"));
        check(b"abc", &[0xff; 30], Err("a delta has no sizes"));
        check(b"abc", &[4, 0], Err("a delta is for a base of another size"));
        check(b"abc", &[3, 2, 1, b'x'], Err("a delta makes another size than it says"));
        check(b"abc", &[3, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, b'x'], Err("a delta makes another size than it says"));
        check(b"abc", &[3, 1, 0], Err("a delta has a step of no known kind"));
        check(b"abc", &[3, 2, 2, b'x'], Err("a delta is cut short"));
        check(b"abc", &[3, 2, 0x91, 1], Err("a delta is cut short"));
        check(b"abc", &[3, 2, 0x91, 2, 2], Err("a delta copies from beyond its base"));
        check(b"abc", &[3, 2, 0x9f, 255, 255, 255, 255, 2], Err("a delta copies from beyond its base"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_applied_or_refused(base: Vec<u8>, delta: Vec<u8>) {
            if let Ok(result) = apply(&base, &delta) {
                proptest::prop_assert_eq!(result.len() as u64, decode_sizes(&delta).unwrap().result);
            }
        }
    }
}
