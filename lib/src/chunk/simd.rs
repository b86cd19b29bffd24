//! The gear scan on vector registers, chosen at run time by what the processor can do.
//!
//! A hash depends on 32 bytes only, so that a range of lengths can be searched from many places at once: each lane of the
//! registers takes a *stripe* of the range, after it was warmed with the bytes before the stripe. The lanes lie in the order
//! of their stripes; the first match is the first one in the lowest lane that has any, and the scalar scan finds it there.
#![allow(unsafe_code)]

use super::gear::{self, Scan};

/// Returns the fastest scan that this processor can run.
pub(super) fn best() -> Scan {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return x86::scan_avx512;
        }
        if is_x86_feature_detected!("avx2") {
            return x86::scan_avx2;
        }
    }
    gear::scan_scalar
}

/// Returns all scans that this processor can run, by name; the scalar one is the first.
pub(super) fn all() -> Vec<(&'static str, Scan)> {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut scans: Vec<(&'static str, Scan)> = vec![("scalar", gear::scan_scalar)];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            scans.push(("avx2", x86::scan_avx2));
        }
        if is_x86_feature_detected!("avx512f") {
            scans.push(("avx512", x86::scan_avx512));
        }
    }
    scans
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::gear::{self, HIGH, LOW, WINDOW};

    /// Bytes of each lane that are loaded together: one 128-bit load.
    const TILE: usize = 16;

    /// The longest stripe: long against the window, so that warming costs little, short against a chunk.
    const STRIPE: usize = 512;

    /// Searches stripes of `data`, the first of which begins at byte `start`; returns a mask of the lanes that have a match.
    type Block = unsafe fn(data: &[u8], start: usize, stripe: usize, limit: u32) -> u32;

    pub(super) fn scan_avx512(data: &[u8], from: usize, to: usize, limit: u32) -> Option<usize> {
        assert!(is_x86_feature_detected!("avx512f"), "BUG: AVX-512 was chosen where there is none");
        // SAFETY: the processor has the feature that the block needs, and the block has 16 lanes.
        unsafe { scan::<16>(data, from, to, limit, block_avx512) }
    }

    pub(super) fn scan_avx2(data: &[u8], from: usize, to: usize, limit: u32) -> Option<usize> {
        assert!(is_x86_feature_detected!("avx2"), "BUG: AVX2 was chosen where there is none");
        // SAFETY: the processor has the feature that the block needs, and the block has 8 lanes.
        unsafe { scan::<8>(data, from, to, limit, block_avx2) }
    }

    /// Searches block after block; what is too short for a block is left to the scalar scan.
    ///
    /// # Safety
    ///
    /// The processor has what `block` needs, and `block` searches `LANES` stripes.
    unsafe fn scan<const LANES: usize>(data: &[u8], from: usize, to: usize, limit: u32, block: Block) -> Option<usize> {
        // The byte before a length completes the window that decides on it.
        let mut start = from.checked_sub(1).filter(|start| *start >= WINDOW)?;
        let end = to.min(data.len());
        while start < end {
            let stripe = ((end - start) / LANES).min(STRIPE) / TILE * TILE;
            if stripe < WINDOW {
                return gear::scan_scalar(data, start + 1, end, limit);
            }
            // SAFETY: the caller has checked the features; `start >= WINDOW`, and all stripes end at or before `end`, which is
            // in `data`.
            let lanes = unsafe { block(data, start, stripe, limit) };
            if lanes != 0 {
                let first = start + lanes.trailing_zeros() as usize * stripe;
                return gear::scan_scalar(data, first + 1, first + stripe, limit);
            }
            start += LANES * stripe;
        }
        None
    }

    /// Fetches the bytes that the block after this one needs next, as far as this tile goes.
    ///
    /// Sixteen streams are more than the processor follows by itself. The address may lie past the data: a prefetch
    /// does not fault.
    #[inline(always)]
    fn prefetch<const LANES: usize>(data: &[u8], start: usize, stripe: usize, tile: usize) {
        let next = data.as_ptr().wrapping_add(start + LANES * stripe + LANES * tile);
        for line in (0..LANES * TILE).step_by(64) {
            // SAFETY: prefetching reads nothing that the program could see, and no address makes it fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast()) };
        }
    }

    /// Searches 16 stripes.
    ///
    /// # Safety
    ///
    /// The processor has AVX-512F. `start >= WINDOW`, `stripe` is a multiple of `TILE`, and `start + 16 * stripe` is at most
    /// the length of `data`.
    #[target_feature(enable = "avx512f")]
    unsafe fn block_avx512(data: &[u8], start: usize, stripe: usize, limit: u32) -> u32 {
        debug_assert!(start >= WINDOW && stripe.is_multiple_of(TILE) && start + 16 * stripe <= data.len());
        // SAFETY: both tables are 64 bytes.
        let (low, high) = unsafe { (_mm512_loadu_si512(LOW.as_ptr().cast()), _mm512_loadu_si512(HIGH.as_ptr().cast())) };
        let mut hash = _mm512_setzero_si512();
        let mut least = _mm512_set1_epi32(-1);
        let mut at = start - WINDOW;
        while at < start + stripe {
            // Hashes of the warm-up belong to the stripe before.
            if at == start {
                least = _mm512_set1_epi32(-1);
            }
            if at >= start {
                prefetch::<16>(data, start, stripe, at - start);
            }
            // SAFETY: row 15 is read from `at + 15 * stripe`, and `at + TILE <= start + stripe`.
            let tile = unsafe { tile_avx512(data.as_ptr().add(at), stripe) };
            for bytes in tile {
                // A lookup heeds the low four bits of its index only, so that shifting is enough.
                macro_rules! step {
                    ($byte:literal) => {
                        let low = _mm512_permutexvar_epi32(_mm512_srli_epi32::<{ 8 * $byte }>(bytes), low);
                        let high = _mm512_permutexvar_epi32(_mm512_srli_epi32::<{ 8 * $byte + 4 }>(bytes), high);
                        hash = _mm512_add_epi32(_mm512_add_epi32(hash, hash), _mm512_add_epi32(low, high));
                        least = _mm512_min_epu32(least, hash);
                    };
                }
                step!(0);
                step!(1);
                step!(2);
                step!(3);
            }
            at += TILE;
        }
        u32::from(_mm512_cmplt_epu32_mask(least, _mm512_set1_epi32(limit as i32)))
    }

    /// Returns the next 16 bytes of 16 rows that lie `stride` apart, transposed: the lanes of result i are bytes 4i to 4i+3.
    ///
    /// # Safety
    ///
    /// The processor has AVX-512F, and 16 bytes can be read at each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn tile_avx512(rows: *const u8, stride: usize) -> [__m512i; 4] {
        // Register i holds the rows i, 4+i, 8+i and 12+i, so that transposing 4 by 4 in its quarters puts all rows in order.
        let row = |i: usize| {
            // SAFETY: that the rows can be read is this function's own condition.
            let [a, b, c, d] = [i, 4 + i, 8 + i, 12 + i].map(|row| unsafe { _mm_loadu_si128(rows.add(row * stride).cast()) });
            let quarters = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
            _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(quarters, c), d)
        };
        let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
        let (low01, high01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (low23, high23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        [
            _mm512_unpacklo_epi64(low01, low23),
            _mm512_unpackhi_epi64(low01, low23),
            _mm512_unpacklo_epi64(high01, high23),
            _mm512_unpackhi_epi64(high01, high23),
        ]
    }

    /// Searches 8 stripes.
    ///
    /// # Safety
    ///
    /// The processor has AVX2. `start >= WINDOW`, `stripe` is a multiple of `TILE`, and `start + 8 * stripe` is at most the
    /// length of `data`.
    #[target_feature(enable = "avx2")]
    unsafe fn block_avx2(data: &[u8], start: usize, stripe: usize, limit: u32) -> u32 {
        debug_assert!(start >= WINDOW && stripe.is_multiple_of(TILE) && start + 8 * stripe <= data.len());
        // SAFETY: each half of a table is 32 bytes.
        let [low, low8, high, high8] = [&LOW[..8], &LOW[8..], &HIGH[..8], &HIGH[8..]]
            .map(|half| _mm256_castsi256_ps(unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }));
        let mut hash = _mm256_setzero_si256();
        let mut least = _mm256_set1_epi32(-1);
        let mut at = start - WINDOW;
        while at < start + stripe {
            // Hashes of the warm-up belong to the stripe before.
            if at == start {
                least = _mm256_set1_epi32(-1);
            }
            if at >= start {
                prefetch::<8>(data, start, stripe, at - start);
            }
            // SAFETY: row 7 is read from `at + 7 * stripe`, and `at + TILE <= start + stripe`.
            let tile = unsafe { tile_avx2(data.as_ptr().add(at), stripe) };
            for bytes in tile {
                // A lookup heeds the low three bits of its index; the fourth, shifted to the sign, chooses between two of them.
                macro_rules! lookup {
                    ($first_bit:expr, $table:ident, $table8:ident) => {{
                        let index = _mm256_srli_epi32::<{ $first_bit }>(bytes);
                        let sign = _mm256_castsi256_ps(_mm256_slli_epi32::<{ 28 - $first_bit }>(bytes));
                        let (a, b) = (_mm256_permutevar8x32_ps($table, index), _mm256_permutevar8x32_ps($table8, index));
                        _mm256_castps_si256(_mm256_blendv_ps(a, b, sign))
                    }};
                }
                macro_rules! step {
                    ($byte:literal) => {
                        let summand = _mm256_add_epi32(lookup!(8 * $byte, low, low8), lookup!(8 * $byte + 4, high, high8));
                        hash = _mm256_add_epi32(_mm256_add_epi32(hash, hash), summand);
                        least = _mm256_min_epu32(least, hash);
                    };
                }
                step!(0);
                step!(1);
                step!(2);
                step!(3);
            }
            at += TILE;
        }
        // There is no unsigned comparison: "at most limit - 1" is "the lesser of both is it itself". A limit is never 0.
        let is_hit = _mm256_cmpeq_epi32(_mm256_min_epu32(least, _mm256_set1_epi32((limit - 1) as i32)), least);
        _mm256_movemask_ps(_mm256_castsi256_ps(is_hit)) as u32
    }

    /// Returns the next 16 bytes of 8 rows that lie `stride` apart, transposed: the lanes of result i are bytes 4i to 4i+3.
    ///
    /// # Safety
    ///
    /// The processor has AVX2, and 16 bytes can be read at each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn tile_avx2(rows: *const u8, stride: usize) -> [__m256i; 4] {
        // Register i holds the rows i and 4+i, so that transposing 4 by 4 in its halves puts all rows in order.
        let row = |i: usize| {
            // SAFETY: that the rows can be read is this function's own condition.
            let [a, b] = [i, 4 + i].map(|row| unsafe { _mm_loadu_si128(rows.add(row * stride).cast()) });
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b)
        };
        let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
        let (low01, high01) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
        let (low23, high23) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
        [
            _mm256_unpacklo_epi64(low01, low23),
            _mm256_unpackhi_epi64(low01, low23),
            _mm256_unpacklo_epi64(high01, high23),
            _mm256_unpackhi_epi64(high01, high23),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testdata::{random, text};
    use proptest::prelude::*;

    fn any_data() -> impl Strategy<Value = Vec<u8>> {
        let len = prop_oneof![0usize..3000, 0usize..40_000];
        (0..4, any::<u64>(), any::<u8>(), len).prop_map(|(kind, seed, byte, len)| match kind {
            0 => random(seed, len),
            1 => text(seed, len),
            // Few different bytes, so that equal windows abound.
            2 => random(seed, len).iter().map(|b| byte ^ (b & 1)).collect(),
            _ => vec![byte; len],
        })
    }

    fn check(data: &[u8], from: usize, to: usize, limit: u32) -> Result<(), TestCaseError> {
        let want = gear::scan_scalar(data, from, to, limit);
        for (name, scan) in all() {
            prop_assert_eq!(scan(data, from, to, limit), want, "{} limit {}", name, limit);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]
        #[test]
        fn all_scans_find_the_same_length(
            data in any_data(), skip in 0usize..64, from in 0usize..2000, to in 0usize..40_000, bits in 4u32..20,
        ) {
            let data = &data[skip.min(data.len())..];
            let (from, to) = (from.max(gear::WINDOW + 1), to.min(data.len()));
            check(data, from, to, 1 << (32 - bits))?;
            // The least hash but one, so that a hash at the limit comes before or after the only one under it.
            let mut hashes: Vec<u32> = (from..=to).map(|n| gear::hash(&data[n - gear::WINDOW..n])).collect();
            hashes.sort_unstable();
            hashes.dedup();
            if let [_, limit, ..] = hashes[..] {
                check(data, from, to, limit)?;
            }
        }
    }

    /// Returns the lowest time of some runs, as bytes per nanosecond.
    fn speed(len: usize, mut run: impl FnMut()) -> f64 {
        let mut time = || {
            let start = std::time::Instant::now();
            run();
            start.elapsed().as_nanos()
        };
        len as f64 / (0..9).map(|_| time()).min().expect("BUG: nine runs") as f64
    }

    #[test]
    #[ignore = "a measurement; run it with --release --nocapture"]
    fn print_speed() {
        use crate::chunk::Chunker;
        use crate::chunk::testdata::lengths;
        for (place, len) in [("256 MB", 256 << 20), ("1 MB, hot", 1 << 20)] {
            let data = random(1, len);
            for (min, avg, max) in [(16384, 65536, 262144), (262144, 1048576, 4194304)] {
                for (name, scan) in all() {
                    let gear = gear::Gear::with_scan(min, avg, max, scan);
                    let gbps = speed(len, || drop(std::hint::black_box(lengths(&data, |rest| gear.cut(rest)))));
                    println!("{place:10} avg {avg:8} {name:8} {gbps:6.2} GB/s");
                }
                let (min, avg, max) = (min as usize, avg as usize, max as usize);
                let gbps = speed(len, || {
                    std::hint::black_box(fastcdc::v2020::FastCDC::new(&data, min, avg, max).count());
                });
                println!("{place:10} avg {avg:8} fastcdc  {gbps:6.2} GB/s");
            }
            let mut rabin = Chunker::new(&"rabin".parse().unwrap());
            let data = &data[..len.min(32 << 20)];
            let gbps = speed(data.len(), || drop(std::hint::black_box(lengths(data, |rest| rabin.cut(rest)))));
            println!("{place:10} avg    65536 rabin    {gbps:6.2} GB/s");
        }
    }
}
