//! The store under limits: many chunks in little memory, a full disk, a killed writer. Each runs in a process of its own.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use super::index::{self, FLUSH_ENTRIES};
use super::pack::TocEntry;
use super::*;

/// Tells a child what to do, since all it gets from the test runner is its name.
const PART: &str = "GDO_TEST_PART";
const DIR: &str = "GDO_TEST_DIR";

/// Prepares a command that runs one of the tests below, which does `part` in `dir`.
fn part(program: &str, arguments: &[&str], name: &str, part: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).args(["--exact", &format!("store::scale::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(PART, part).env(DIR, dir);
    command
}

fn this_program() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Returns a line such as `VmHWM` of this process, in MiB.
fn status_mib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn synthetic_id(i: u64) -> ChunkId {
    ChunkId::of(&i.to_le_bytes())
}

/// Gives `store` an index of `n` chunks in packs that are not there.
fn build_index(store: &Store, n: u64) {
    const PER_PACK: u64 = 512;
    let mut packs = Vec::new();
    for first in (0..n).step_by(PER_PACK as usize) {
        let toc = (first..n.min(first + PER_PACK)).map(|i| TocEntry {
            id: synthetic_id(i),
            offset: 16 + (i - first) as u32 * 65600,
            stored_len: 65536,
            plain_len: 65536,
        });
        packs.push((PackId::of(&first.to_le_bytes()), toc.collect()));
        if packs.len() as u64 * PER_PACK >= FLUSH_ENTRIES as u64 {
            let segment = index::write_segment(store.layout(), &mut packs).unwrap();
            index::publish(store.layout(), segment.as_slice()).unwrap();
            index::merge_segments(store.layout(), Vec::new()).unwrap();
        }
    }
    let segment = if packs.is_empty() { None } else { index::write_segment(store.layout(), &mut packs).unwrap() };
    index::publish(store.layout(), segment.as_slice()).unwrap();
    index::merge_segments(store.layout(), Vec::new()).unwrap();
}

/// Returns the processor time of one lookup in nanoseconds: other work on the machine does not count.
fn nanos_per_lookup(store: &Store, ids: impl Iterator<Item = u64>, expected: bool) -> u128 {
    let ids: Vec<ChunkId> = ids.map(synthetic_id).collect();
    let processor_time =
        || -> std::time::Duration { rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).try_into().unwrap() };
    let start = processor_time();
    for id in &ids {
        assert_eq!(store.contains(id).unwrap(), expected);
    }
    (processor_time() - start).as_nanos() / ids.len() as u128
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn many_chunks_part() {
    let (Ok(n), Ok(dir)) = (std::env::var(PART), std::env::var(DIR)) else { return };
    let n: u64 = n.parse().unwrap();
    let limit = rustix::process::Rlimit { current: Some(256 << 20), maximum: Some(256 << 20) };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    index::rebuild(Store::create(Path::new(&dir)).unwrap().layout()).unwrap();
    let start = Instant::now();
    build_index(&Store::open(Path::new(&dir)).unwrap(), n);
    let build = start.elapsed();
    let build_rss = status_mib("VmHWM");
    let start = Instant::now();
    let store = Store::open(Path::new(&dir)).unwrap();
    let open = start.elapsed();
    let start = Instant::now();
    assert!(store.contains(&synthetic_id(n / 2)).unwrap());
    let first = start.elapsed();
    let n_segments = store.index().unwrap().segments.len();
    let hit = nanos_per_lookup(&store, (0..200_000).map(|i| i * 7919 % n), true);
    let miss = nanos_per_lookup(&store, n..n + 200_000, false);
    assert_eq!(store.stats().unwrap().chunks, n);
    println!(
        "{n} chunks in {n_segments} segments: built in {build:.1?} with {build_rss} MiB, opened in {open:.1?}, first lookup {first:.1?}, \
         hit {hit} ns, miss {miss} ns; peak {} MiB resident, {} MiB mapped",
        status_mib("VmHWM"),
        status_mib("VmPeak")
    );
    assert!(status_mib("VmHWM") < 256);
    assert!(open.as_millis() < 1 || cfg!(debug_assertions));
}

/// Builds and searches an index of `n` chunks with 256 MiB of address space.
fn check_many(n: u64) {
    let dir = tempfile::tempdir().unwrap();
    let output = part(&this_program(), &[], "many_chunks_part", &n.to_string(), dir.path()).output().unwrap();
    let text = printed(&output);
    assert!(output.status.success() && text.contains("segments: built in"), "{text}");
    println!("{}", text.lines().find(|line| line.contains("segments: built in")).unwrap());
}

#[test]
fn two_million_chunks_need_less_than_256_mib() {
    check_many(2_000_000);
}

#[test]
#[ignore = "takes a minute and 2 GB of disk"]
fn twenty_million_chunks_need_less_than_256_mib() {
    check_many(20_000_000);
}

fn noise_chunk(i: u64) -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn writing_part() {
    let (Ok(part), Ok(dir)) = (std::env::var(PART), std::env::var(DIR)) else { return };
    let store = Store::create(Path::new(&dir)).unwrap();
    match part.as_str() {
        "fill the disk" => fill(&store),
        "collect on a full disk" => collect_on_full_disk(&store),
        "write for ever" => {
            let writer = store.writer(WriteOptions::default()).unwrap();
            for i in 0.. {
                let chunk = noise_chunk(i);
                writer.put(ChunkId::of(&chunk), &chunk).unwrap();
                println!("put {i}");
            }
        }
        other => panic!("unknown part '{other}'"),
    }
}

/// Puts until the disk is full, in a store that has something already.
fn fill(store: &Store) {
    let put = |writer: &Writer, i| writer.put(ChunkId::of(&noise_chunk(i)), &noise_chunk(i));
    let first = store.writer(WriteOptions::default()).unwrap();
    put(&first, 0).unwrap();
    first.finish().unwrap();
    let writer = store.writer(WriteOptions::default()).unwrap();
    let error = (1..).find_map(|i| put(&writer, i).err()).unwrap();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:#}");
    assert_eq!(put(&writer, 0).unwrap_err().kind(), Kind::NoSpace, "a writer that failed stays failed");
    assert_eq!(writer.finish().unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(list_dir(&store.layout().tmp()).unwrap(), Vec::<PathBuf>::new());
    let store = Store::open(&store.layout().root).unwrap();
    assert_eq!(store.read(&ChunkId::of(&noise_chunk(0)), 65536).unwrap(), noise_chunk(0));
    assert_eq!(store.check(true, &Default::default()).unwrap(), []);
    let live = &mut |sink: &mut dyn FnMut(ChunkId) -> Result<()>| sink(ChunkId::of(&noise_chunk(0)));
    let report = store.gc(live, GcOptions::default(), &Default::default()).unwrap();
    assert_eq!((report.removed_packs, report.live_chunks), (1, 1));
    let writer = store.writer(WriteOptions::default()).unwrap();
    put(&writer, 1).unwrap();
    writer.finish().unwrap();
    println!("filled and emptied");
}

/// Collects garbage with no byte left, neither for rewritten packs nor for a new index.
fn collect_on_full_disk(store: &Store) {
    let writer = store.writer(WriteOptions::default()).unwrap();
    (0..600).for_each(|i| _ = writer.put(ChunkId::of(&noise_chunk(i)), &noise_chunk(i)).unwrap());
    assert_eq!(writer.finish().unwrap().packs, 2);
    let ballast = store.layout().root.with_file_name("ballast");
    let mut file = File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    // The first pack is half live and cannot be rewritten; the second is dead.
    let live = 0..200;
    let collect = || {
        let ids: Vec<_> = live.clone().map(|i| ChunkId::of(&noise_chunk(i))).collect();
        store.gc(&mut |sink| ids.iter().try_for_each(|id| sink(*id)), GcOptions::default(), &Default::default()).unwrap()
    };
    let report = collect();
    assert_eq!((report.removed_packs, report.rewritten_packs, report.is_cut_short), (1, 0, true));
    std::fs::remove_file(ballast).unwrap();
    let report = collect();
    assert_eq!((report.removed_packs, report.rewritten_packs, report.is_cut_short), (1, 1, false));
    for i in live {
        assert_eq!(store.read(&ChunkId::of(&noise_chunk(i)), 65536).unwrap(), noise_chunk(i));
    }
    assert!(!store.contains(&ChunkId::of(&noise_chunk(200))).unwrap());
    assert_eq!(store.check(true, &Default::default()).unwrap(), []);
    println!("filled and emptied");
}

/// Runs a part on a file system of 50 MiB, where one can be mounted.
fn check_on_small_disk(what: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=50m tmpfs '{}' && exec \"$@\"", dir.path().display());
    let mounted = dir.path().join("store");
    let unshare = ["-rm", "sh", "-c", &script, "sh", &this_program()];
    let output = part("unshare", &unshare, "writing_part", what, &mounted).output().unwrap();
    let text = printed(&output);
    if text.contains("unshare:") || text.contains("mount:") {
        println!("skipped: no file system of our own can be mounted here: {text}");
        return;
    }
    assert!(output.status.success() && text.contains("filled and emptied"), "{text}");
}

#[test]
fn a_full_disk_leaves_the_store_as_it_was() {
    check_on_small_disk("fill the disk");
}

#[test]
fn gc_makes_room_on_a_full_disk() {
    check_on_small_disk("collect on a full disk");
}

#[test]
fn a_killed_writer_leaves_no_lock_and_nothing_that_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::create(&path).unwrap();
    let mut command = part(&this_program(), &[], "writing_part", "write for ever", &path);
    let mut child = command.process_group(0).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.by_ref().map_while(std::result::Result::ok).any(|line| line.ends_with("put 700")));
    let nothing = &mut |_: &mut dyn FnMut(ChunkId) -> Result<()>| Ok(());
    let error = store.gc(nothing, GcOptions::default(), &Default::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Locked, "the writer lives");
    child.kill().unwrap();
    child.wait().unwrap();
    let left = list_dir(&store.layout().tmp()).unwrap();
    assert_ne!(left, Vec::<PathBuf>::new());
    // What it had written whole is saved by the next one, also beside what is no pack; a pack that was not indexed yet is found.
    let open = std::fs::read(&left[0]).unwrap();
    std::fs::write(store.layout().tmp().join(".gdo-tmp-x"), b"something else").unwrap();
    std::fs::write(store.layout().tmp().join(".gdo-tmp-y"), b"").unwrap();
    let n_whole = pack::salvage(&open).len();
    drop(store.lease().unwrap());
    assert_eq!(list_dir(&store.layout().tmp()).unwrap(), Vec::<PathBuf>::new());
    let store = Store::open(&path).unwrap();
    let mut n_found = 0;
    store
        .for_each_chunk(&mut |id| {
            n_found += 1;
            store.read(&id, MAX_CHUNK).map(drop)
        })
        .unwrap();
    assert!(n_found >= n_whole && n_whole > 0, "{n_found} of {n_whole}");
    assert_eq!(store.check(true, &Default::default()).unwrap(), []);
    std::fs::remove_file(store.layout().list()).unwrap();
    index::replace_list(store.layout(), &[]).unwrap();
    std::fs::write(store.layout().tmp().join(".gdo-tmp-z"), b"").unwrap();
    drop(store.lease().unwrap());
    let store = Store::open(&path).unwrap();
    let mut n_again = 0;
    store
        .for_each_chunk(&mut |_| {
            n_again += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(n_again, n_found);
    store.gc(nothing, GcOptions::default(), &Default::default()).unwrap();
    assert_eq!(list_dir(&store.layout().tmp()).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(index::list_packs(store.layout()).unwrap().len(), 0);
    assert_eq!(store.check(true, &Default::default()).unwrap(), []);
}
