//! The gear chunker, our own storage format (`docs/formats/chunker-gear.md`).
//!
//! The hash of a window of 32 bytes is the sum of `TABLE[byte]`, each doubled once for every byte after it, in 32 bits:
//! what left the window has been shifted out. A cut depends on the bytes of its own chunk only.

use super::simd;

/// Bytes that a hash depends on.
pub(super) const WINDOW: usize = 32;

/// How many doublings lie between the average and the two thresholds.
const LEVEL: u32 = 2;

/// Returns the first length in `from..=to` whose hash is under `limit`; `from` is over [`WINDOW`], `to` at most the length.
pub(super) type Scan = fn(data: &[u8], from: usize, to: usize, limit: u32) -> Option<usize>;

/// Where the hash ends a chunk. Has no state: each chunk stands for itself.
pub(super) struct Gear {
    min: usize,
    avg: usize,
    max: usize,
    /// Hashes under this end a chunk shorter than the average.
    hard: u32,
    /// Hashes under this end any other.
    easy: u32,
    scan: Scan,
}

impl Gear {
    pub(super) fn new(min: u32, avg: u32, max: u32) -> Self {
        Self::with_scan(min, avg, max, simd::best())
    }

    pub(super) fn with_scan(min: u32, avg: u32, max: u32, scan: Scan) -> Self {
        let bits = avg.ilog2();
        // A hash whose top n bits are zero is a hash under 2^(32-n).
        let [hard, easy] = [bits + LEVEL, bits - LEVEL].map(|bits| 1 << (u32::BITS - bits));
        Self { min: min as usize, avg: avg as usize, max: max as usize, hard, easy, scan }
    }

    pub(super) fn cut(&self, data: &[u8]) -> usize {
        let end = data.len().min(self.max);
        if end <= self.min {
            return end;
        }
        let hard = || (self.scan)(data, self.min, end.min(self.avg - 1), self.hard);
        let easy = || (self.scan)(data, self.avg, end, self.easy);
        hard().or_else(easy).unwrap_or(end)
    }
}

/// The reference that all others equal.
pub(super) fn scan_scalar(data: &[u8], from: usize, to: usize, limit: u32) -> Option<usize> {
    // The byte that completes the first window belongs to the search.
    let start = from.checked_sub(1)?;
    let mut hash = data.get(from - WINDOW..start)?.iter().fold(0, |hash, byte| step(hash, *byte));
    for (i, byte) in data.get(start..to)?.iter().enumerate() {
        hash = step(hash, *byte);
        if hash < limit {
            return Some(from + i);
        }
    }
    None
}

/// Returns the hash of a window.
#[cfg(test)]
pub(super) fn hash(window: &[u8]) -> u32 {
    window.iter().fold(0, |hash, byte| step(hash, *byte))
}

fn step(hash: u32, byte: u8) -> u32 {
    (hash << 1).wrapping_add(TABLE[byte as usize])
}

/// What each byte adds: `LOW[byte & 15] + HIGH[byte >> 4]`, which a vector register can look up.
static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = LOW[byte & 15].wrapping_add(HIGH[byte >> 4]);
        byte += 1;
    }
    table
};

/// The part of a byte's summand that its low four bits choose.
pub(super) static LOW: [u32; 16] = TABLES.0;

/// The part of a byte's summand that its high four bits choose.
pub(super) static HIGH: [u32; 16] = TABLES.1;

const TABLES: ([u32; 16], [u32; 16]) = derive_tables();

/// Draws both tables from SplitMix64, seeded with the ASCII bytes `gdo-gear`, the high half of each output.
///
/// A draw for `HIGH` is dropped where some byte, repeated, would have a hash that the easiest allowed threshold accepts: a run
/// of one byte never ends a chunk.
const fn derive_tables() -> ([u32; 16], [u32; 16]) {
    let mut state = u64::from_le_bytes(*b"gdo-gear");
    let (mut low, mut high) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 16 {
        (state, low[i]) = draw(state);
        i += 1;
    }
    let mut i = 0;
    while i < 16 {
        (state, high[i]) = draw(state);
        if keeps_runs_whole(&low, high[i]) {
            i += 1;
        }
    }
    (low, high)
}

/// Returns the next state of SplitMix64 and the high half of its output.
const fn draw(state: u64) -> (u64, u32) {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (state, (z >> 32) as u32)
}

/// Tells whether a window of one byte misses the easiest threshold, for each byte with this high part.
const fn keeps_runs_whole(low: &[u32; 16], high: u32) -> bool {
    let easiest = 1 << (u32::BITS - (64u32.ilog2() - LEVEL));
    let mut i = 0;
    while i < 16 {
        // The sum of the summand times 1, 2, 4, … 2^31 is the summand times -1.
        if low[i].wrapping_add(high).wrapping_neg() < easiest {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testdata::{SplitMix64, Vector, data, lengths, random};

    #[test]
    fn the_tables_are_those_of_the_format_page() {
        let page = include_str!("../../../docs/formats/chunker-gear.md");
        for (name, table) in [("LOW", LOW), ("HIGH", HIGH)] {
            let rows: Vec<String> =
                table.chunks(8).map(|row| row.iter().map(|n| format!("{n:08x}")).collect::<Vec<_>>().join(" ")).collect();
            let text = format!("{name}\n{}\n", rows.join("\n"));
            assert!(page.contains(&text), "the page does not have\n{text}");
        }
    }

    #[test]
    fn a_run_of_one_byte_is_cut_at_the_longest_length_only() {
        for byte in 0..=255 {
            for avg in [64, 1024, 65536, 1 << 24] {
                let easiest = Gear::with_scan(64, avg, avg, scan_scalar).easy;
                assert!(hash(&[byte; WINDOW]) >= easiest, "byte {byte}, avg {avg}");
            }
            assert_eq!(lengths(&[byte; 1000], |rest| Gear::new(64, 64, 400).cut(rest)), [400, 400, 200], "byte {byte}");
        }
    }

    #[test]
    fn cuts_are_those_of_the_golden_vectors() {
        let vectors = Vector::all(include_str!("../../tests/vectors/gear.jsonl"));
        assert!(vectors.len() >= 12);
        for vector in vectors {
            let [min, avg, max] = ["min", "avg", "max"].map(|key| vector.number(key) as u32);
            for (name, scan) in simd::all() {
                let gear = Gear::with_scan(min, avg, max, scan);
                let got = lengths(&vector.data(), |rest| gear.cut(rest));
                assert_eq!(got, vector.lengths(), "{name} min={min} avg={avg} max={max}");
            }
        }
    }

    /// Made the golden file, once; a change of what it prints is a new format.
    #[test]
    #[ignore = "prints the golden file"]
    fn print_golden_vectors() {
        let (k, m) = (1024, 1 << 20);
        for (kind, seed, len, min, avg, max) in [
            ("splitmix64", 42, 4 * m, 16 * k, 64 * k, 256 * k),
            ("splitmix64", 1, 3_000_000, 2 * k, 8 * k, 64 * k),
            ("splitmix64", 7, 500_000, 512, 1024, 4096),
            ("splitmix64", 9, 20_011, 64, 64, 256),
            ("splitmix64", 10, 30_011, 64, 256, 256),
            ("splitmix64", 11, 100, 16 * k, 64 * k, 256 * k),
            ("splitmix64", 13, 16 * k + 1, 16 * k, 64 * k, 256 * k),
            ("splitmix64", 15, 12_000_001, 256 * k, m, 4 * m),
            ("splitmix64", 16, 100_000, 1000, 1024, 1025),
            ("splitmix64", 19, 0, 16 * k, 64 * k, 256 * k),
            ("zeros", 0, 600_000, 16 * k, 64 * k, 256 * k),
            ("ones", 0, 10_000, 64, 64, 1000),
            ("text", 3, m, k, 4 * k, 16 * k),
            ("text", 5, 2_000_000, 16 * k, 64 * k, 256 * k),
        ] {
            let gear = Gear::with_scan(min, avg, max, scan_scalar);
            let lengths = lengths(&data(kind, seed, len as usize), |rest| gear.cut(rest));
            let lengths = format!("{lengths:?}").replace(' ', "");
            println!(r#"{{"data":"{kind}","seed":{seed},"len":{len},"min":{min},"avg":{avg},"max":{max},"lengths":{lengths}}}"#);
        }
    }

    /// Returns the lengths that the fastcdc crate gives, as a judge of quality.
    fn fastcdc_lengths(data: &[u8], min: u32, avg: u32, max: u32) -> Vec<usize> {
        let level = fastcdc::v2020::Normalization::Level2;
        fastcdc::v2020::FastCDC::with_level(data, min as usize, avg as usize, max as usize, level).map(|c| c.length).collect()
    }

    /// Returns how many bytes of `new` lie in chunks that `old` does not have.
    fn new_bytes(old: &[u8], new: &[u8], lengths_of: impl Fn(&[u8]) -> Vec<usize>) -> usize {
        let pieces = |data: &[u8]| {
            let mut rest = data;
            let cut = |length| blake3::hash(rest.split_off(..length).expect("BUG: the lengths are those of the data"));
            lengths_of(data).into_iter().map(cut).collect::<Vec<_>>()
        };
        let known: std::collections::HashSet<blake3::Hash> = pieces(old).into_iter().collect();
        let is_new = pieces(new).into_iter().map(|id| !known.contains(&id));
        lengths_of(new).into_iter().zip(is_new).map(|(length, is_new)| if is_new { length } else { 0 }).sum()
    }

    #[test]
    fn chunks_spread_and_resynchronise_as_well_as_those_of_fastcdc() {
        let (min, avg, max) = (1024, 4096, 16384);
        let gear = |data: &[u8]| lengths(data, |rest| Gear::new(min, avg, max).cut(rest));
        let fastcdc = |data: &[u8]| fastcdc_lengths(data, min, avg, max);
        let old = random(77, 16 << 20);
        let mean = |lengths: &[usize]| old.len() as f64 / lengths.len() as f64;
        let spread = |lengths: &[usize]| {
            let variance = lengths.iter().map(|n| (*n as f64 - mean(lengths)).powi(2)).sum::<f64>() / lengths.len() as f64;
            variance.sqrt() / mean(lengths)
        };
        let (ours, theirs) = (gear(&old), fastcdc(&old));
        assert!((mean(&ours) / mean(&theirs) - 1.0).abs() < 0.05, "mean {} against {}", mean(&ours), mean(&theirs));
        assert!(spread(&ours) < 1.05 * spread(&theirs), "spread {} against {}", spread(&ours), spread(&theirs));
        assert!(ours.iter().filter(|n| **n == max as usize).count() * 1000 < ours.len(), "too many chunks of the longest length");

        let mut generator = SplitMix64(78);
        let mut new = old.clone();
        let n_edits = 100;
        for i in (1..=n_edits).rev() {
            let at = i * old.len() / (n_edits + 1) + (generator.next() % 1000) as usize;
            let insertion = random(generator.next(), 1 + (generator.next() % 31) as usize);
            new.splice(at..at, insertion);
        }
        let cost = |bytes, mean| bytes as f64 / n_edits as f64 / mean;
        let ours = cost(new_bytes(&old, &new, gear), mean(&ours));
        let theirs = cost(new_bytes(&old, &new, fastcdc), mean(&theirs));
        println!("new bytes per edit, in mean chunks: {ours:.2} against {theirs:.2}");
        assert!(ours < 1.5 && ours < 1.15 * theirs, "{ours} chunks per edit against {theirs}");
    }
}
