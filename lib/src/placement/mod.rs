//! Which holder keeps which chunk, what a holder promised, and when a copy may go: the rules, without I/O but for the ledger's files.
//!
//! Formats and the reasons for the rules: `docs/formats/holders.md`.

pub mod inquiry;
pub mod ledger;
pub mod record;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;

/// Names a holder: the first 16 bytes of the BLAKE3 of its public key's text; printed and parsed as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId([u8; 16]);

impl HolderId {
    /// What a host answers that is no holder.
    pub const NONE: Self = Self([0; 16]);

    /// Returns the id that the holder with this public key has; `key` is its text, as `ssh-ed25519 AAAA…`, without a comment.
    pub fn of_key(key: &str) -> Self {
        Self(*blake3::hash(key.as_bytes()).as_bytes().first_chunk().expect("BUG: a hash has 32 bytes"))
    }

    /// Takes 16 bytes that already are an id.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HolderId({self})")
    }
}

impl FromStr for HolderId {
    type Err = Error;

    /// Accepts exactly 32 lower-case hex digits.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::new(Kind::Corrupt, "holder id is not 32 lower-case hex digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(wrong());
        }
        Ok(Self(u128::from_str_radix(text, 16).map_err(|_| wrong())?.to_be_bytes()))
    }
}

/// A holder, as far as placement is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who it is.
    pub id: HolderId,
    /// How much it can take, in GiB; at least 1. Its share grows with it.
    pub capacity: u64,
}

/// Says whether `own`, one of `holders`, is among the `copies` that share `chunk`.
pub fn is_share(own: &HolderId, holders: &[Holder], copies: usize, chunk: &ChunkId) -> bool {
    let Some(own) = holders.iter().find(|holder| holder.id == *own) else { return false };
    let rank = Rank::of(own, chunk);
    holders.iter().filter(|other| other.id != own.id && Rank::of(other, chunk).is_before(&rank)).count() < copies
}

/// Returns the holders that share `chunk`, the first one first; all of them if they are fewer than `copies`.
pub fn share(holders: &[Holder], copies: usize, chunk: &ChunkId) -> Vec<HolderId> {
    let mut ranks: Vec<Rank> = holders.iter().map(|holder| Rank::of(holder, chunk)).collect();
    ranks.sort_by(|a, b| if a.is_before(b) { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater });
    ranks.into_iter().take(copies).map(|rank| rank.id).collect()
}

/// How near a holder is to a chunk: weighted rendezvous hashing (Schindelhauer and Schomaker, 2005), in integers so that every machine agrees.
struct Rank {
    id: HolderId,
    /// −log2 of the hash as a fraction of 1, with 32 binary digits after the point.
    distance: u64,
    capacity: u64,
}

impl Rank {
    fn of(holder: &Holder, chunk: &ChunkId) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(holder.id.as_bytes()).update(chunk.as_bytes());
        let hash = u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("BUG: a hash has 32 bytes"));
        Self { id: holder.id, distance: (64 << 32) - log2(u128::from(hash) + 1), capacity: holder.capacity.max(1) }
    }

    fn is_before(&self, other: &Self) -> bool {
        let ours = u128::from(self.distance) * u128::from(other.capacity);
        let theirs = u128::from(other.distance) * u128::from(self.capacity);
        (ours, self.id) < (theirs, other.id)
    }
}

/// Returns log2 of `x`, which is 1 to 2^64, with 32 binary digits after the point, cut off: each squaring yields a digit.
fn log2(x: u128) -> u64 {
    let whole = x.ilog2();
    // From 1 to 2, with 63 digits after the point.
    let mut mantissa = if whole <= 63 { x << (63 - whole) } else { x >> (whole - 63) };
    let mut digits = 0;
    for _ in 0..32 {
        mantissa = (mantissa * mantissa) >> 63;
        digits <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            digits |= 1;
        }
    }
    u64::from(whole) << 32 | digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(capacities: &[u64]) -> Vec<Holder> {
        let holder = |(at, &capacity): (usize, &u64)| Holder { id: HolderId::of_key(&at.to_string()), capacity };
        capacities.iter().enumerate().map(holder).collect()
    }

    fn chunks() -> impl Iterator<Item = ChunkId> {
        (0..20_000_u32).map(|at| ChunkId::of(&at.to_le_bytes()))
    }

    #[test]
    fn an_id_is_printed_and_parsed_as_32_hex_digits() {
        let id = HolderId::of_key("1");
        assert_eq!(id.to_string().parse::<HolderId>().unwrap(), id);
        for bad in ["", "0f", &"AF".repeat(16), &"0".repeat(31), &"0".repeat(33), &"+".repeat(32)] {
            assert_eq!(bad.parse::<HolderId>().unwrap_err().to_string(), "holder id is not 32 lower-case hex digits");
        }
    }

    #[test]
    fn logarithms_are_right_to_the_last_digit() {
        for (x, expected) in
            [(1_u128, 0.0), (2, 1.0), (3, 1.584_962_500_721_156), (10, std::f64::consts::LOG2_10), (1 << 64, 64.0)]
        {
            let found = log2(x) as f64 / 2f64.powi(32);
            assert!((found - expected).abs() < 1e-9, "{x}: {found}");
        }
        assert_eq!(log2(1 << 63), 63 << 32);
        assert!(log2((1 << 63) - 1) < 63 << 32);
    }

    #[test]
    fn shares_are_as_large_as_capacities() {
        let all = holders(&[100, 200, 300, 400]);
        let mut n = [0; 4];
        for chunk in chunks() {
            let first = share(&all, 1, &chunk);
            n[all.iter().position(|holder| holder.id == first[0]).unwrap()] += 1;
        }
        for (at, n) in n.into_iter().enumerate() {
            let expected = 2000 * (at + 1);
            assert!(n > expected - 200 && n < expected + 200, "holder {at} has {n} of about {expected}");
        }
    }

    #[test]
    fn a_new_holder_takes_its_part_and_nothing_else_moves() {
        let few = holders(&[100, 100, 100, 100]);
        let more = holders(&[100, 100, 100, 100, 100]);
        let new = more[4].id;
        let mut n_moved = 0;
        for chunk in chunks() {
            let (before, after) = (share(&few, 2, &chunk), share(&more, 2, &chunk));
            let kept: Vec<_> = after.iter().filter(|id| **id != new).copied().collect();
            assert_eq!(kept[..], before[..kept.len()], "the others keep their order");
            n_moved += usize::from(after.contains(&new));
            for holder in &more {
                assert_eq!(is_share(&holder.id, &more, 2, &chunk), after.contains(&holder.id));
            }
        }
        // Two fifths of the chunks have the new one among their two.
        assert!((7600..8400).contains(&n_moved), "{n_moved}");
    }

    #[test]
    fn with_few_holders_each_has_everything() {
        let all = holders(&[1, 1_000_000]);
        for chunk in chunks().take(100) {
            assert_eq!(share(&all, 3, &chunk).len(), 2);
            assert!(is_share(&all[0].id, &all, 2, &chunk));
            assert!(!is_share(&HolderId::NONE, &all, 2, &chunk), "who is no holder has no share");
        }
    }

    /// The page tells how to compute it; other programs must come to the same.
    #[test]
    fn shares_never_change() {
        let all = holders(&[1, 2, 3]);
        let firsts: Vec<usize> = chunks()
            .take(16)
            .map(|chunk| share(&all, 1, &chunk)[0])
            .map(|id| all.iter().position(|holder| holder.id == id).unwrap())
            .collect();
        assert_eq!(firsts, GOLDEN);
    }

    // Computed apart from this code, by b3sum and floating point.
    const GOLDEN: [usize; 16] = [0, 2, 2, 2, 1, 1, 2, 0, 2, 2, 1, 2, 2, 2, 0, 1];
}
