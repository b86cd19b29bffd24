//! Measures the chunk store: `cargo run --release --example store_speed -- DIR`. DIR gets some GB and is left as it was found.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::time::{Duration, Instant};

use git_devops::id::ChunkId;
use git_devops::progress::Progress;
use git_devops::store::{Store, WriteOptions};

const CHUNK: usize = 64 << 10;
const N: usize = 8192;

fn main() {
    let dir = std::env::args().nth(1).expect("usage: store_speed DIR");
    let dir = Path::new(&dir).join("store-speed");
    let words = words();
    for (name, make) in [("random", &noise as &(dyn Fn(usize) -> Vec<u8> + Sync)), ("text", &|i| text(&words, i))] {
        let chunks: Vec<(ChunkId, Vec<u8>)> = (0..N).map(make).map(|chunk| (ChunkId::of(&chunk), chunk)).collect();
        for n_threads in [1, 2] {
            measure(&dir, name, &chunks, n_threads);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}

fn measure(dir: &Path, name: &str, chunks: &[(ChunkId, Vec<u8>)], n_threads: usize) {
    let gb = (chunks.len() * CHUNK) as f64 / 1e9;
    let store = Store::create(dir).unwrap();
    let writer = store.writer(WriteOptions::default()).unwrap();
    let put_all = || {
        let put = |part: &[(ChunkId, Vec<u8>)]| part.iter().for_each(|(id, chunk)| _ = writer.put(*id, chunk).unwrap());
        std::thread::scope(|scope| chunks.chunks(N / n_threads).for_each(|part| _ = scope.spawn(move || put(part))));
    };
    let timer = Timer::start();
    put_all();
    let put = timer.speed(gb);
    let known = Timer::start();
    put_all();
    let known = (Timer::cpu() - known.cpu).as_nanos() / chunks.len() as u128;
    let timer_finish = Timer::start();
    let stats = writer.finish().unwrap();
    let finish = timer_finish.start.elapsed();
    let ratio = stats.plain_bytes as f64 / stats.stored_bytes as f64;
    println!("{name}, {n_threads} threads: put {put}, finish {finish:.2?}, known {known} ns each, ratio {ratio:.2}");
    if n_threads == 1 {
        read_and_check(&store, name, chunks, gb);
    }
}

fn read_and_check(store: &Store, name: &str, chunks: &[(ChunkId, Vec<u8>)], gb: f64) {
    let mut out = Vec::new();
    let timer = Timer::start();
    chunks.iter().for_each(|(id, chunk)| store.read_into(id, &mut out, chunk.len()).unwrap());
    println!("{name}: read {}", timer.speed(gb));
    let stored = store.stats().unwrap().stored_bytes as f64 / 1e9;
    let timer = Timer::start();
    assert_eq!(store.check(true, &Progress::default()).unwrap(), []);
    println!("{name}: check with data, 2 threads, stored bytes {}", timer.speed(stored));
    let timer = Timer::start();
    chunks.iter().for_each(|(id, chunk)| assert_eq!(ChunkId::of(chunk), *id));
    println!("{name}: BLAKE3 alone {}", timer.speed(gb));
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    let timer = Timer::start();
    for (_, chunk) in chunks {
        out.clear();
        out.reserve(2 * CHUNK);
        zstd.compress_to_buffer(&chunk[..], &mut out).unwrap();
    }
    println!("{name}: zstd alone {}", timer.speed(gb));
}

/// Wall-clock and processor time; on a busy machine only the second means anything.
struct Timer {
    start: Instant,
    cpu: Duration,
}

impl Timer {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: Self::cpu() }
    }

    fn cpu() -> Duration {
        rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).try_into().unwrap()
    }

    /// Returns the speed at which `gb` were done.
    fn speed(&self, gb: f64) -> String {
        let (wall, cpu) = (self.start.elapsed().as_secs_f64(), (Self::cpu() - self.cpu).as_secs_f64());
        format!("{:.2} GB/s ({:.2} per processor second)", gb / wall, gb / cpu)
    }
}

fn noise(i: usize) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK];
    blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Words of a made-up language, 2 to 9 letters.
fn words() -> Vec<Vec<u8>> {
    noise(usize::MAX)
        .chunks(16)
        .map(|w| w[1..3 + usize::from(w[0] % 8)].iter().map(|b| b'a' + b % 26).chain(*b" ").collect())
        .collect()
}

fn text(words: &[Vec<u8>], i: usize) -> Vec<u8> {
    let picks = noise(i);
    // The product of two picks makes some words common and most rare.
    let word = |pick: &[u8]| &words[usize::from(pick[0]) * usize::from(pick[1]) * words.len() / 65536];
    picks.chunks(2).flat_map(word).copied().take(CHUNK).collect()
}
