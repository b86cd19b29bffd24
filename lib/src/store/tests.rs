use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::pack::{Codec, PackWriter, RecordHeader, TRAILER_LEN};
use super::*;
use crate::progress::Progress;

/// A store in a directory that goes with it.
struct Scratch {
    store: Store,
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: Store::create(&dir.path().join("store")).unwrap(), dir }
    }

    fn reopened(&self) -> Store {
        Store::open(&self.root()).unwrap()
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn files(&self, dir: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for path in list_dir(&self.root().join(dir)).unwrap() {
            if path.is_dir() {
                files.extend(list_dir(&path).unwrap());
            } else {
                files.push(path);
            }
        }
        files.sort();
        files
    }

    fn put_all(&self, chunks: &[Vec<u8>]) -> WriteStats {
        let writer = self.store.writer(WriteOptions::default()).unwrap();
        for chunk in chunks {
            writer.put(ChunkId::of(chunk), chunk).unwrap();
        }
        writer.finish().unwrap()
    }

    fn check(&self) -> Vec<Finding> {
        self.store.check(true, &Progress::default()).unwrap()
    }
}

/// Bytes that look random, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Bytes that compress about threefold.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let words: Vec<String> = noise(seed, 512).chunks(2).map(|w| format!("{:x} ", u16::from_le_bytes([w[0], w[1]]))).collect();
    let picks = noise(seed + 1, len);
    picks.iter().flat_map(|&pick| words[usize::from(pick)].bytes()).take(len).collect()
}

/// Overwrites a read-only file.
fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_put_is_read_back_from_this_store_and_a_reopened_one() {
    let scratch = Scratch::new();
    let chunks = [vec![], b"hello world\n".to_vec(), noise(1, 65536), text(2, 65536), vec![0; 256 << 10]];
    let stats = scratch.put_all(&chunks);
    assert_eq!((stats.new_chunks, stats.known_chunks, stats.packs), (5, 0, 1));
    for store in [scratch.store.clone(), scratch.reopened()] {
        for chunk in &chunks {
            let id = ChunkId::of(chunk);
            assert!(store.contains(&id).unwrap());
            assert_eq!(&store.read(&id, chunk.len()).unwrap(), chunk);
        }
    }
    assert_eq!(scratch.check(), []);
    let stats = scratch.store.stats().unwrap();
    assert_eq!((stats.packs, stats.chunks, stats.plain_bytes), (1, 5, chunks.iter().map(|c| c.len() as u64).sum()));
}

#[test]
fn a_chunk_is_stored_once_also_by_threads_that_race() {
    let scratch = Scratch::new();
    let chunks: Vec<_> = (0..500).map(|i| noise(i, 1000)).collect();
    let writer = scratch.store.writer(WriteOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| chunks.iter().for_each(|chunk| _ = writer.put(ChunkId::of(chunk), chunk).unwrap()));
        }
    });
    let stats = writer.finish().unwrap();
    assert_eq!((stats.new_chunks, stats.known_chunks), (500, 1500));
    assert_eq!(scratch.put_all(&chunks), WriteStats { known_chunks: 500, ..WriteStats::default() });
}

#[test]
fn a_chunk_that_is_not_there_is_said_to_be_not_present() {
    let scratch = Scratch::new();
    let id = ChunkId::of(b"x");
    let error = scratch.store.read(&id, 10).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (Kind::NotFound, format!("chunk '{id}' is not present")));
    assert!(scratch.store.find_all(&id).unwrap().is_empty());
}

#[test]
fn of_many_chunks_those_are_lacking_that_are_in_no_segment() {
    let scratch = Scratch::new();
    let plain = |range: std::ops::Range<u32>| range.map(|at| at.to_le_bytes().to_vec()).collect::<Vec<_>>();
    for at in 0..3 {
        scratch.put_all(&plain(at * 1000..at * 1000 + 300));
    }
    let mut all: Vec<ChunkId> = plain(0..3000).iter().map(|plain| ChunkId::of(plain)).collect();
    all.sort_unstable();
    let expected: Vec<ChunkId> = all.iter().filter(|id| !scratch.store.contains(id).unwrap()).copied().collect();
    assert_eq!(expected.len(), 3000 - 900);
    for store in [scratch.store.clone(), scratch.reopened()] {
        assert_eq!(store.lacking(&all).unwrap(), expected);
        assert_eq!(store.lacking(&[]).unwrap(), []);
    }
    // Another process stores what is lacking.
    scratch
        .reopened()
        .writer(WriteOptions::default())
        .map(|writer| {
            plain(0..3000).iter().for_each(|plain| _ = writer.put(ChunkId::of(plain), plain).unwrap());
            writer.finish().unwrap()
        })
        .unwrap();
    assert_eq!(scratch.store.lacking(&all).unwrap(), []);
}

#[test]
fn a_chunk_longer_than_the_reader_expects_is_refused() {
    let scratch = Scratch::new();
    scratch.put_all(&[vec![7; 1000]]);
    let error = scratch.store.read(&ChunkId::of(&[7; 1000]), 999).unwrap_err();
    assert!(format!("{error:#}").ends_with("it has 1000 bytes, at most 999 are expected"), "{error:#}");
}

#[test]
fn a_chunk_longer_than_any_chunk_may_be_is_refused_by_put() {
    let scratch = Scratch::new();
    let writer = scratch.store.writer(WriteOptions::default()).unwrap();
    let plain = vec![0; MAX_CHUNK + 1];
    assert_eq!(writer.put(ChunkId::of(&plain), &plain).unwrap_err().kind(), Kind::Usage);
    writer.put(ChunkId::of(&plain[1..]), &plain[1..]).unwrap();
    writer.finish().unwrap();
    assert_eq!(scratch.store.read(&ChunkId::of(&plain[1..]), MAX_CHUNK).unwrap().len(), MAX_CHUNK);
}

#[test]
fn another_store_object_sees_what_was_written_after_it_was_opened() {
    let scratch = Scratch::new();
    let other = scratch.reopened();
    assert!(!other.contains(&ChunkId::of(b"late")).unwrap());
    scratch.put_all(&[b"late".to_vec()]);
    assert!(other.contains(&ChunkId::of(b"late")).unwrap());
    assert_eq!(other.read(&ChunkId::of(b"late"), 10).unwrap(), b"late");
}

#[test]
fn files_are_private_and_packs_are_read_only() {
    let scratch = Scratch::new();
    scratch.put_all(&[b"x".to_vec()]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&scratch.root()), 0o700);
    let pack = &scratch.files("packs")[0];
    assert_eq!((mode(pack), mode(pack.parent().unwrap())), (0o444, 0o700));
    assert_eq!(pack.file_stem().unwrap().to_str().unwrap(), PackId::of(&fs::read(pack).unwrap()).to_string());
}

#[test]
fn a_writer_that_is_dropped_leaves_no_temporary_file() {
    let scratch = Scratch::new();
    let writer = scratch.store.writer(WriteOptions::default()).unwrap();
    for i in 0..600 {
        let chunk = noise(i, 65536);
        writer.put(ChunkId::of(&chunk), &chunk).unwrap();
    }
    assert_ne!(scratch.files("tmp"), Vec::<PathBuf>::new());
    drop(writer);
    assert_eq!(scratch.files("tmp"), Vec::<PathBuf>::new());
    assert_eq!(scratch.files("packs").len(), 1, "the pack that was full is kept");
    assert!(scratch.store.contains(&ChunkId::of(&noise(0, 65536))).unwrap());
    assert!(!scratch.store.contains(&ChunkId::of(&noise(599, 65536))).unwrap());
    assert_eq!(scratch.check(), []);
}

#[test]
fn the_next_writer_removes_what_a_killed_one_left() {
    let scratch = Scratch::new();
    scratch.put_all(&[b"x".to_vec()]);
    let temp = scratch.root().join("tmp/.gdo-tmp-0123456789abcdef");
    let segment = scratch.root().join(format!("index/{}.segment", "0".repeat(64)));
    fs::write(&temp, "half a pack").unwrap();
    fs::write(&segment, "never listed").unwrap();
    let held = scratch.store.lease().unwrap();
    fs::write(&temp, "half a pack").unwrap();
    drop(scratch.store.lease().unwrap());
    assert!(temp.exists(), "somebody else may be writing it");
    drop(held);
    scratch.put_all(&[]);
    assert!(!temp.exists() && !segment.exists());
    assert_eq!(scratch.check(), []);
}

#[test]
fn a_directory_with_something_else_in_it_does_not_become_a_store() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = Store::create(dir.path()).err().unwrap();
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_store_whose_creation_was_interrupted_is_created() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("packs")).unwrap();
    fs::write(dir.path().join(".gdo-tmp-0123456789abcdef"), "").unwrap();
    assert!(Store::open(dir.path()).is_err());
    assert!(!Store::create(dir.path()).unwrap().contains(&ChunkId::of(b"")).unwrap());
}

#[test]
fn only_the_known_format_is_opened() {
    for (bytes, kind) in [
        ("git-devops chunk store 1\n", None),
        ("git-devops chunk store 2\n", Some(Kind::Unsupported)),
        ("git-devops chunk store 0\n", Some(Kind::Corrupt)),
        ("git-devops chunk store 1", Some(Kind::Corrupt)),
        ("git-devops chunk store 1\n\n", Some(Kind::Corrupt)),
        ("", Some(Kind::Corrupt)),
        ("anything", Some(Kind::Corrupt)),
    ] {
        assert_eq!(decode_format(bytes.as_bytes()).err().map(|e| e.kind()), kind, "{bytes:?}");
    }
    for (at, bit) in every_flip(FORMAT.len()) {
        let mut bytes = FORMAT.as_bytes().to_vec();
        bytes[at] ^= bit;
        assert!(decode_format(&bytes).is_err(), "byte {at}, bit {bit}");
    }
}

// ---- packs as bytes

/// Bits to flip: each one of the first 64 bytes, one of each byte after them.
fn every_flip(len: usize) -> impl Iterator<Item = (usize, u8)> {
    (0..len).flat_map(|at| (0..8).filter(move |bit| at < 64 || *bit == at % 8).map(move |bit| (at, 1 << bit)))
}

/// What zstd 1.5.7 makes of 200 times the letter a.
const A_FRAME: [u8; 18] = *b"\x28\xb5\x2f\xfd\x20\xc8\x4d\x00\x00\x10\x61\x61\x01\x00\x43\x0a\x60\x01";

fn example_chunks() -> [(RecordHeader, Vec<u8>, Vec<u8>); 2] {
    [(b"hello world\n".to_vec(), None), (vec![b'a'; 200], Some(A_FRAME.to_vec()))].map(|(plain, frame)| {
        let codec = if frame.is_some() { Codec::Zstd } else { Codec::Plain };
        let stored = frame.unwrap_or_else(|| plain.clone());
        let (plain_len, stored_len) = (plain.len() as u32, stored.len() as u32);
        let header = RecordHeader { id: ChunkId::of(&plain), codec, plain_len, stored_len, checksum: pack::checksum(&stored) };
        (header, stored, plain)
    })
}

fn example_pack() -> (PackId, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let mut pack = PackWriter::create(dir.path()).unwrap();
    for (header, stored, _) in example_chunks() {
        pack.append(&header, &stored).unwrap();
    }
    let sealed = pack.seal(dir.path()).unwrap();
    (sealed.id, fs::read(pack::path_of(dir.path(), sealed.id)).unwrap())
}

/// Returns what `hexdump -C` prints.
fn hex_dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut last: Option<&[u8]> = None;
    let mut is_starred = false;
    for (i, line) in bytes.chunks(16).enumerate() {
        if last == Some(line) {
            out += if is_starred { "" } else { "*\n" };
            is_starred = true;
            continue;
        }
        (last, is_starred) = (Some(line), false);
        let hex: Vec<String> = line.chunks(8).map(|half| half.iter().map(|b| format!("{b:02x} ")).collect()).collect();
        let shown: String = line.iter().map(|b| if (32..127).contains(b) { char::from(*b) } else { '.' }).collect();
        out += &format!("{:08x}  {:<49} |{shown}|\n", i * 16, hex.join(" "));
    }
    out + &format!("{:08x}\n", bytes.len())
}

fn assert_documented(page: &str, bytes: &[u8]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats").join(page);
    let dump = hex_dump(bytes);
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains(&dump), "'{}' does not show\n{dump}", page.display());
}

#[test]
fn the_page_of_the_pack_format_shows_these_bytes() {
    assert_documented("chunk-pack.md", &example_pack().1);
}

fn damages(bytes: &[u8], name: PackId) -> Vec<(u64, bool)> {
    let mut found = Vec::new();
    let read = read_of(bytes);
    pack::verify(bytes.len() as u64, name, &read, &mut |damage| found.push((damage.offset, damage.chunk.is_some())));
    found
}

fn read_of(bytes: &[u8]) -> impl Fn(u64, &mut [u8]) -> Result<()> {
    |at, into| {
        let there = bytes.get(at as usize..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(there.expect("BUG: what is read is there"));
        Ok(())
    }
}

fn toc_of(bytes: &[u8]) -> Vec<TocEntry> {
    pack::read_toc(bytes.len() as u64, &read_of(bytes)).unwrap()
}

#[test]
fn a_sound_pack_has_no_damage() {
    let (name, bytes) = example_pack();
    assert_eq!(damages(&bytes, name), []);
    let toc = toc_of(&bytes);
    let mut plain = Vec::new();
    for (entry, (_, _, expected)) in toc.iter().zip(example_chunks()) {
        pack::unpack(&bytes[entry.offset as usize..], entry, &mut plain).unwrap();
        assert_eq!(plain, expected);
    }
    assert_eq!(pack::salvage(&bytes), toc);
}

#[test]
fn every_flipped_bit_and_every_truncation_of_a_pack_is_found() {
    let (name, bytes) = example_pack();
    let toc = toc_of(&bytes);
    for len in 0..bytes.len() {
        assert_ne!(damages(&bytes[..len], name), [], "cut at {len}");
    }
    for (at, bit) in every_flip(bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= bit;
        assert_ne!(damages(&bad, name), [], "byte {at}, bit {bit}");
        // The name is not what finds it, but where the pack itself cannot know.
        assert_ne!(damages(&bad, PackId::of(&bad)), [], "byte {at}, bit {bit}, by the new name");
        for entry in toc.iter().filter(|entry| (entry.offset as usize..entry.offset as usize + entry.record_len()).contains(&at))
        {
            let mut plain = Vec::new();
            assert!(pack::unpack(&bad[entry.offset as usize..], entry, &mut plain).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_pack_of_many_pieces_loses_only_the_chunks_that_are_wrong_or_unreadable() {
    let scratch = Scratch::new();
    // Longer than what is read at once: many of the one, one of the other.
    scratch.put_all(&(0..40).map(|at| noise(at, if at == 20 { 1 << 20 } else { 60_000 })).collect::<Vec<_>>());
    let [path] = scratch.files("packs").try_into().unwrap();
    let bytes = fs::read(path).unwrap();
    let (name, toc) = (PackId::of(&bytes), toc_of(&bytes));
    assert!(toc.len() == 40 && damages(&bytes, name).is_empty());
    for at in [0, 7, 8, 9, 19, 20, 21, 39] {
        let entry = &toc[at];
        let mut bad = bytes.clone();
        bad[entry.offset as usize + entry.record_len() - 1] ^= 1;
        let only = [(entry.offset.into(), true)];
        assert_eq!(damages(&bad, name), only, "chunk {at}");
        let hole = u64::from(entry.offset) + 1000;
        let found = |n_times: usize| {
            let (n_failed, read, mut found) = (std::cell::Cell::new(0), read_of(&bytes), Vec::new());
            let with_hole = |at: u64, into: &mut [u8]| {
                if (at..at + into.len() as u64).contains(&hole) && n_failed.get() < n_times {
                    n_failed.set(n_failed.get() + 1);
                    into.fill(7);
                    return Err(Error::new(Kind::Io, "input/output error"));
                }
                read(at, into)
            };
            pack::verify(bytes.len() as u64, name, &with_hole, &mut |damage| found.push((damage.offset, damage.chunk.is_some())));
            found
        };
        assert_eq!(found(usize::MAX), only, "chunk {at}");
        let again = found(1);
        assert!(again.len() == 1 && !again[0].1, "chunk {at}, which the disk gave back when it was asked again: {again:?}");
    }
    let another = noise(1, 32).try_into().unwrap();
    assert_eq!(damages(&bytes, PackId::from_bytes(another)), [(0, false)]);
    let mut table = bytes.clone();
    table[bytes.len() - TRAILER_LEN - 1] ^= 1;
    assert_eq!(damages(&table, name), [((bytes.len() - TRAILER_LEN) as u64, false)]);
}

#[test]
fn chunks_are_found_in_a_pack_without_table_and_after_a_hole() {
    let (_, bytes) = example_pack();
    let toc = toc_of(&bytes);
    assert_eq!(pack::salvage(&bytes[..bytes.len() - 1]), toc);
    let mut bad = bytes.clone();
    bad[..80].fill(0);
    assert_eq!(pack::salvage(&bad), toc[1..]);
    assert_eq!(pack::salvage(&bytes[..toc[1].offset as usize + 70]), toc[..1]);
    assert_eq!(pack::salvage(b""), []);
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_allocated() {
    let (header, stored, _) = example_chunks()[1].clone();
    let mut plain = Vec::new();
    for (plain_len, stored_len) in [(u32::MAX, 18), (199, 18), (201, 18), (200, 19), (200, 17), (200, 200), (17, 18)] {
        let lying = RecordHeader { plain_len, stored_len, ..header };
        let entry = pack::TocEntry { id: header.id, offset: 0, stored_len, plain_len };
        let record = [&lying.encode()[..], &stored].concat();
        let error = pack::unpack(&record, &entry, &mut plain).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{plain_len} {stored_len}: {error:#}");
        assert!(plain.capacity() < 4096);
    }
}

/// A zstd frame that asks for a window of 2^31 bytes and is 200 times the letter a.
const WIDE_FRAME: [u8; 10] = *b"\x28\xb5\x2f\xfd\x00\xa8\x43\x06\x00\x61";
/// One that needs the dictionary 7.
const DICTIONARY_FRAME: [u8; 11] = *b"\x28\xb5\x2f\xfd\x01\x58\x07\x43\x06\x00\x61";

#[test]
fn a_hostile_frame_gets_no_more_memory_than_its_chunk_may_have() {
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    assert!(bomb.len() < 100_000);
    let max = MAX_CHUNK as u32;
    let cases: &[(&str, &[u8], u32, Option<&str>)] = &[
        ("256 MiB that say they are 16", &bomb, max, Some("decompress-limit")),
        ("256 MiB that say they are more than a chunk", &bomb, max + 1, Some("chunk-length")),
        ("256 MiB that say they are 4 GiB", &bomb, u32::MAX, Some("chunk-length")),
        ("a window that nobody has room for", &WIDE_FRAME, 200, None),
        ("a dictionary", &DICTIONARY_FRAME, 200, Some("decompress-limit")),
        ("a second frame", &[A_FRAME, A_FRAME].concat(), 200, Some("decompress-limit")),
        ("a second frame that is announced", &[A_FRAME, A_FRAME].concat(), 400, Some("chunk-hash")),
        ("cut short", &A_FRAME[..17], 200, Some("decompress-limit")),
        ("no frame", b"no frame at all", 200, Some("decompress-limit")),
        ("shorter than announced", &A_FRAME, 201, Some("chunk-length")),
        ("right", &A_FRAME, 200, None),
    ];
    for &(name, stored, plain_len, expected) in cases {
        let (id, stored_len) = (ChunkId::of(&[b'a'; 200]), stored.len() as u32);
        let header = RecordHeader { id, codec: Codec::Zstd, plain_len, stored_len, checksum: pack::checksum(stored) };
        let mut plain = Vec::new();
        let entry = pack::TocEntry { id, offset: 0, stored_len, plain_len };
        let outcome = pack::unpack(&[&header.encode()[..], stored].concat(), &entry, &mut plain);
        let reason = outcome.map_err(|error| error.reason().map(crate::error::Reason::id)).err();
        assert_eq!(reason, expected.map(Some), "{name}");
        assert!(plain.capacity() <= MAX_CHUNK + 1 && (expected.is_none() || plain.is_empty()), "{name}: {}", plain.capacity());
    }
}

// ---- damage and repair

#[test]
fn a_rotten_chunk_is_reported_with_pack_and_offset_and_the_others_are_read() {
    let scratch = Scratch::new();
    scratch.put_all(&[noise(1, 5000), text(2, 5000)]);
    let place = scratch.store.find_all(&ChunkId::of(&noise(1, 5000))).unwrap()[0];
    let pack = scratch.files("packs")[0].clone();
    overwrite(&pack, |bytes| bytes[place.offset as usize + 2000] ^= 1);
    let store = scratch.reopened();
    let error = store.read(&ChunkId::of(&noise(1, 5000)), 5000).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let message = format!("{error:#}");
    assert!(message.contains(&format!("at byte 16 of '{}'", pack.display())), "{message}");
    assert!(message.ends_with("stored bytes do not match their checksum"), "{message}");
    assert_eq!(store.read(&ChunkId::of(&text(2, 5000)), 5000).unwrap(), text(2, 5000));
    let found = scratch.check();
    assert_eq!(
        (found.len(), &found[0].file, found[0].offset, found[0].chunk),
        (1, &pack, Some(16), Some(ChunkId::of(&noise(1, 5000))))
    );
}

#[test]
fn a_second_copy_of_a_rotten_chunk_is_read() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.store.writer(WriteOptions::default()).unwrap(), scratch.store.writer(WriteOptions::default()).unwrap());
    let chunk = noise(1, 5000);
    for (writer, other) in [(&a, noise(2, 10)), (&b, noise(3, 10))] {
        writer.put(ChunkId::of(&chunk), &chunk).unwrap();
        writer.put(ChunkId::of(&other), &other).unwrap();
    }
    a.finish().unwrap();
    b.finish().unwrap();
    for pack in scratch.files("packs") {
        overwrite(&pack, |bytes| bytes[2000] ^= 1);
        let store = scratch.reopened();
        assert_eq!(store.read(&ChunkId::of(&chunk), 5000).unwrap(), chunk);
        overwrite(&pack, |bytes| bytes[2000] ^= 1);
    }
}

#[test]
fn repair_saves_the_sound_chunks_and_lets_the_lost_one_be_put_again() {
    let scratch = Scratch::new();
    let chunks = [noise(1, 5000), text(2, 5000), noise(3, 5000)];
    scratch.put_all(&chunks);
    let pack = scratch.files("packs")[0].clone();
    overwrite(&pack, |bytes| bytes[2000] ^= 1);
    assert_eq!(scratch.store.repair(&Progress::default()).unwrap().len(), 1);
    assert!(!pack.exists());
    assert_eq!(scratch.files("quarantine").len(), 1);
    assert!(!scratch.store.contains(&ChunkId::of(&chunks[0])).unwrap());
    for chunk in &chunks[1..] {
        assert_eq!(&scratch.store.read(&ChunkId::of(chunk), 5000).unwrap(), chunk);
    }
    assert_eq!(scratch.put_all(&chunks).new_chunks, 1);
    assert_eq!(scratch.check(), []);
}

#[test]
fn repair_leaves_a_pack_in_its_place_that_it_can_make_again() {
    let scratch = Scratch::new();
    let chunks = [noise(1, 5000), text(2, 5000), noise(3, 5000)];
    scratch.put_all(&chunks);
    let pack = scratch.files("packs")[0].clone();
    let sound = fs::read(&pack).unwrap();
    for at in [0, 9, sound.len() - TRAILER_LEN - 1, sound.len() - 1] {
        overwrite(&pack, |bytes| bytes[at] ^= 1);
        assert!(!scratch.store.repair(&Progress::default()).unwrap().is_empty(), "{at}");
        assert_eq!(fs::read(&pack).unwrap(), sound, "{at}");
        assert!(!scratch.root().join("quarantine").exists(), "{at}");
        for chunk in &chunks {
            assert_eq!(&scratch.reopened().read(&ChunkId::of(chunk), 5000).unwrap(), chunk);
        }
        assert_eq!(scratch.check(), []);
    }
    // What is no file is put aside.
    fs::remove_file(&pack).unwrap();
    fs::create_dir(&pack).unwrap();
    assert!(!scratch.store.repair(&Progress::default()).unwrap().is_empty());
    assert!(!pack.exists() && scratch.root().join("quarantine").join(pack.file_name().unwrap()).is_dir());
    assert_eq!(scratch.put_all(&chunks).new_chunks, 3);
    assert_eq!(scratch.check(), []);
}

#[test]
fn a_pack_that_is_cut_short_is_no_reason_to_call_its_chunks_known() {
    let scratch = Scratch::new();
    let chunks = [noise(1, 5000), text(2, 5000)];
    for damage in ["cut", "removed"] {
        scratch.put_all(&chunks);
        for pack in scratch.files("packs") {
            match damage {
                "cut" => overwrite(&pack, |bytes| bytes.truncate(3000)),
                _ => fs::remove_file(pack).unwrap(),
            }
        }
        let store = scratch.reopened();
        let writer = store.writer(WriteOptions::default()).unwrap();
        for chunk in &chunks {
            assert_ne!(writer.put(ChunkId::of(chunk), chunk).unwrap(), Put::Known, "{damage}");
        }
        writer.finish().unwrap();
        for chunk in &chunks {
            assert_eq!(&store.read(&ChunkId::of(chunk), 5000).unwrap(), chunk, "{damage}");
        }
    }
}

#[test]
fn the_index_can_be_damaged_in_any_way_and_is_rebuilt() {
    let damage = |scratch: &Scratch, what: &str| {
        let segment = scratch.files("index").into_iter().find(|path| path.extension().is_some()).unwrap();
        let list = scratch.root().join("index/list");
        match what {
            "no list" => fs::remove_file(list).unwrap(),
            "empty list" => fs::write(list, "").unwrap(),
            "flipped list" => overwrite(&list, |bytes| bytes[40] ^= 1),
            "no segment" => fs::remove_file(segment).unwrap(),
            "cut segment" => overwrite(&segment, |bytes| bytes.truncate(4300)),
            "flipped block" => overwrite(&segment, |bytes| bytes[50] ^= 1),
            "flipped tables" => overwrite(&segment, |bytes| bytes[4100] ^= 1),
            "no index at all" => scratch.files("index").iter().for_each(|path| fs::remove_file(path).unwrap()),
            _ => unreachable!(),
        }
    };
    for what in [
        "no list",
        "empty list",
        "flipped list",
        "no segment",
        "cut segment",
        "flipped block",
        "flipped tables",
        "no index at all",
    ] {
        let scratch = Scratch::new();
        let chunks: Vec<_> = (0..80).map(|i| noise(i, 300)).collect();
        scratch.put_all(&chunks);
        damage(&scratch, what);
        let store = scratch.reopened();
        for chunk in &chunks {
            assert_eq!(&store.read(&ChunkId::of(chunk), 300).unwrap(), chunk, "{what}");
        }
        assert_eq!(scratch.check(), [], "{what}");
        damage(&scratch, what);
        assert_eq!(scratch.check().len(), 1, "{what}");
        assert_eq!(scratch.check(), [], "{what}");
    }
}

#[test]
fn an_index_that_lies_costs_a_rebuild_but_no_wrong_answer() {
    let scratch = Scratch::new();
    let chunks: Vec<_> = (0..10).map(|i| noise(i, 300)).collect();
    scratch.put_all(&chunks);
    let layout = Layout { root: scratch.root() };
    // A segment with right checksums that tells the place of the next chunk for each.
    let pack = index::list_packs(&layout).unwrap()[0].id;
    let mut toc = index::read_toc(&pack::path_of(&layout.packs(), pack)).unwrap();
    let ids: Vec<_> = toc.iter().map(|entry| entry.id).collect();
    for (i, entry) in toc.iter_mut().enumerate() {
        entry.id = ids[(i + 1) % ids.len()];
    }
    let lying = index::write_segment(&layout, &mut vec![(pack, toc)]).unwrap().unwrap();
    index::replace_list(&layout, &[lying]).unwrap();
    let store = scratch.reopened();
    for chunk in &chunks {
        assert_eq!(&store.read(&ChunkId::of(chunk), 300).unwrap(), chunk);
    }
}

// ---- index segments as bytes

/// The segment that lists the example pack, in a directory of its own.
fn example_segment() -> (tempfile::TempDir, segment::SegmentId) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout { root: dir.path().to_owned() };
    fs::create_dir(layout.index()).unwrap();
    fs::create_dir(layout.tmp()).unwrap();
    let (name, bytes) = example_pack();
    let id = index::write_segment(&layout, &mut vec![(name, toc_of(&bytes))]).unwrap().unwrap();
    (dir, id)
}

#[test]
fn the_page_of_the_segment_format_shows_these_bytes() {
    let (dir, id) = example_segment();
    assert_documented("index-segment.md", &fs::read(segment::path_of(&dir.path().join("index"), id)).unwrap());
}

#[test]
fn the_page_of_the_store_layout_shows_this_list() {
    let (_dir, id) = example_segment();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats/store-layout.md");
    let list = String::from_utf8(index::encode_list(&[id])).unwrap();
    assert!(fs::read_to_string(page).unwrap().contains(&list), "{list}");
}

#[test]
fn every_flipped_bit_and_every_truncation_of_a_segment_is_found() {
    let (dir, id) = example_segment();
    let path = segment::path_of(&dir.path().join("index"), id);
    let sound = fs::read(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let open_and_verify = || Arc::new(segment::Segment::open(&dir.path().join("index"), id)?).verify();
    open_and_verify().unwrap();
    for (at, bit) in every_flip(sound.len()) {
        file.write_all_at(&[sound[at] ^ bit], at as u64).unwrap();
        assert!(open_and_verify().is_err(), "byte {at}, bit {bit}");
        file.write_all_at(&[sound[at]], at as u64).unwrap();
    }
    for len in (0..sound.len()).rev() {
        file.set_len(len as u64).unwrap();
        assert!(open_and_verify().is_err(), "cut at {len}");
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_of_the_segment_list_is_found() {
    let list = index::encode_list(&[segment::SegmentId([1; 32]), segment::SegmentId([2; 32])]);
    assert_eq!(index::decode_list(&list).unwrap(), [segment::SegmentId([1; 32]), segment::SegmentId([2; 32])]);
    assert_eq!(index::decode_list(&index::encode_list(&[])).unwrap(), []);
    for len in 0..list.len() {
        assert_eq!(index::decode_list(&list[..len]).unwrap_err().kind(), Kind::Corrupt, "cut at {len}");
    }
    for (at, bit) in every_flip(list.len()) {
        let mut bytes = list.clone();
        bytes[at] ^= bit;
        assert_eq!(index::decode_list(&bytes).unwrap_err().kind(), Kind::Corrupt, "byte {at}, bit {bit}");
    }
}

// ---- garbage collection

impl Scratch {
    fn gc(&self, live: &[Vec<u8>], options: GcOptions) -> Result<GcReport> {
        let ids: Vec<_> = live.iter().map(|chunk| ChunkId::of(chunk)).collect();
        self.store.gc(&mut |sink| ids.iter().try_for_each(|id| sink(*id)), options, &Progress::default())
    }

    /// Checks that exactly `live` can be read, by this store object and by a new one.
    fn assert_has(&self, live: &[Vec<u8>], dead: &[Vec<u8>]) {
        for store in [self.store.clone(), self.reopened()] {
            for chunk in live {
                assert_eq!(&store.read(&ChunkId::of(chunk), MAX_CHUNK).unwrap(), chunk);
            }
            for chunk in dead {
                assert_eq!(store.read(&ChunkId::of(chunk), MAX_CHUNK).unwrap_err().kind(), Kind::NotFound);
            }
        }
        assert_eq!(self.check(), []);
    }
}

fn noises(seeds: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    seeds.map(|seed| noise(seed, 1000)).collect()
}

#[test]
fn gc_removes_dead_packs_rewrites_half_dead_ones_and_leaves_the_others() {
    let scratch = Scratch::new();
    for seeds in [0..10, 10..20, 20..30] {
        scratch.put_all(&noises(seeds));
    }
    let live = [noises(10..15), noises(21..30)].concat();
    let dry = scratch.gc(&live, GcOptions { dry_run: true, ..GcOptions::default() }).unwrap();
    assert_eq!((dry.removed_packs, dry.rewritten_packs, dry.live_chunks), (2, 1, 14));
    assert_eq!(scratch.files("packs").len(), 3);
    let report = scratch.gc(&live, GcOptions::default()).unwrap();
    assert_eq!((report.removed_packs, report.rewritten_packs, report.live_chunks), (2, 1, 14));
    assert_eq!((report.removed_bytes, report.copied_bytes), (2 * 11120, 5 * 1104));
    assert_eq!(report.dead_bytes_left, 1104);
    assert_eq!(scratch.files("packs").len(), 2);
    scratch.assert_has(&live, &[noises(0..10), noises(15..20)].concat());
    scratch.assert_has(&noises(20..21), &[]);
    assert_eq!(scratch.gc(&live, GcOptions { max_dead_ratio: 0.0, ..GcOptions::default() }).unwrap().rewritten_packs, 1);
    scratch.assert_has(&live, &noises(20..21));
    assert_eq!(scratch.gc(&[], GcOptions::default()).unwrap().removed_packs, 2);
    assert_eq!(scratch.files("packs"), Vec::<PathBuf>::new());
    scratch.assert_has(&[], &live);
}

#[test]
fn chunks_are_removed_by_name_and_no_other_one_goes() {
    let scratch = Scratch::new();
    for seeds in [0..10, 10..20, 20..30] {
        scratch.put_all(&noises(seeds));
    }
    let ids = |chunks: &[Vec<u8>]| {
        let mut ids: Vec<_> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
        ids.sort();
        ids
    };
    let mut all = Vec::new();
    scratch
        .store
        .for_each_chunk(&mut |id| {
            all.push(id);
            Ok(())
        })
        .unwrap();
    assert_eq!(all, ids(&noises(0..30)));
    let live = ids(&noises(0..21));
    let dead =
        |most| scratch.store.dead(&mut |sink| live.iter().try_for_each(|id| sink(*id)), most, &Progress::default()).unwrap();
    assert_eq!(dead(100), ids(&noises(21..30)));
    assert_eq!(dead(3).len(), 3);
    let doomed = [noises(3..5), noises(10..20), noises(50..51)].concat();
    let _lock = scratch.store.removal_lock().unwrap();
    let remove =
        |may_go: &mut dyn FnMut() -> Result<()>| scratch.store.remove_chunks(&ids(&doomed), may_go, &Progress::default());
    let refuse = &mut || Err(Error::new(Kind::Conflict, "too late"));
    assert_eq!(remove(refuse).unwrap_err().kind(), Kind::Conflict);
    scratch.assert_has(&noises(0..30), &[]);
    let lease = scratch.store.lease().unwrap();
    assert_eq!(remove(&mut || Ok(())).unwrap_err().kind(), Kind::Locked);
    drop(lease);
    let report = remove(&mut || Ok(())).unwrap();
    // What the refused run copied is used.
    assert_eq!((report.removed_packs, report.rewritten_packs), (2, 0));
    scratch.assert_has(&[noises(0..3), noises(5..10), noises(20..30)].concat(), &doomed);
    assert_eq!(scratch.gc(&[], GcOptions::default()).unwrap_err().kind(), Kind::Locked, "one at a time");
    // Nothing to do is nothing done.
    assert_eq!(remove(&mut || panic!("nothing goes")).unwrap().removed_packs, 0);
}

#[test]
fn gc_counts_live_chunks_that_are_not_here_and_keeps_young_packs() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..2));
    let since = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let report = scratch.gc(&noises(5..6), GcOptions { keep_since: Some(since), ..GcOptions::default() }).unwrap();
    assert_eq!((report.live_chunks, report.absent_chunks, report.removed_packs, report.dead_bytes_left), (0, 1, 0, 2208));
    scratch.assert_has(&noises(0..2), &[]);
}

#[test]
fn gc_is_refused_while_somebody_has_a_lease_or_collects() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..2));
    let writer = scratch.reopened().writer(WriteOptions::default()).unwrap();
    let error = scratch.gc(&[], GcOptions::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Locked);
    assert!(error.to_string().contains("somebody stores chunks there"), "{error}");
    let (_, lease) = writer.finish_with_lease().unwrap();
    assert_eq!(scratch.gc(&[], GcOptions::default()).unwrap_err().kind(), Kind::Locked);
    drop(lease);
    let held = durable::Lock::exclusive(&scratch.root().join("gc-lock")).unwrap();
    assert_eq!(scratch.gc(&[], GcOptions::default()).unwrap_err().kind(), Kind::Locked);
    drop(held);
    scratch.assert_has(&noises(0..2), &[]);
    scratch.gc(&[], GcOptions::default()).unwrap();
    scratch.assert_has(&[], &noises(0..2));
}

#[test]
fn a_writer_that_runs_while_gc_marks_loses_nothing() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..2));
    let refs = Mutex::new(Vec::<ChunkId>::new());
    let mut rounds = 0;
    let report = scratch.store.gc(
        &mut |sink| {
            rounds += 1;
            refs.lock().unwrap().iter().try_for_each(|id| sink(*id))?;
            if rounds == 1 {
                // Everything is marked; now somebody relies on a dead chunk, moves a ref and is done.
                let writer = scratch.reopened().writer(WriteOptions::default())?;
                assert_eq!(writer.put(ChunkId::of(&noise(0, 1000)), &noise(0, 1000))?, Put::Known);
                let (_, _lease) = writer.finish_with_lease()?;
                refs.lock().unwrap().push(ChunkId::of(&noise(0, 1000)));
            }
            Ok(())
        },
        GcOptions::default(),
        &Progress::default(),
    );
    assert_eq!(report.unwrap().live_chunks, 1);
    assert_eq!(rounds, 2);
    scratch.assert_has(&noises(0..1), &noises(1..2));
}

#[test]
fn a_writer_that_still_runs_when_gc_has_marked_stops_it() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..2));
    let mut writer = None;
    let error = scratch.store.gc(
        &mut |_| {
            writer = Some(scratch.reopened().writer(WriteOptions::default())?);
            Ok(())
        },
        GcOptions::default(),
        &Progress::default(),
    );
    assert_eq!(error.unwrap_err().kind(), Kind::Locked);
    scratch.assert_has(&noises(0..2), &[]);
}

#[test]
fn a_store_that_was_open_during_gc_finds_what_moved_and_not_what_went() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..4));
    let other = scratch.reopened();
    assert!(other.contains(&ChunkId::of(&noise(0, 1000))).unwrap());
    let report = scratch.gc(&noises(0..1), GcOptions::default()).unwrap();
    assert_eq!(report.rewritten_packs, 1);
    assert_eq!(other.read(&ChunkId::of(&noise(0, 1000)), 1000).unwrap(), noise(0, 1000));
    assert!(!other.contains(&ChunkId::of(&noise(1, 1000))).unwrap());
}

#[test]
fn gc_finds_packs_that_nobody_indexed() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..2));
    let list = fs::read(scratch.root().join("index/list")).unwrap();
    scratch.put_all(&noises(2..4));
    scratch.put_all(&noises(4..6));
    // As if the writers had been killed after they sealed their packs.
    fs::write(scratch.root().join("index/list"), list).unwrap();
    assert!(!scratch.reopened().contains(&ChunkId::of(&noise(2, 1000))).unwrap());
    let report = scratch.gc(&noises(0..4), GcOptions::default()).unwrap();
    assert_eq!((report.live_chunks, report.removed_packs), (4, 1));
    scratch.assert_has(&noises(0..4), &noises(4..6));
}

#[test]
fn gc_keeps_the_good_copy_of_a_chunk_whose_other_copy_is_rotten() {
    for rotten in [0, 1] {
        let scratch = Scratch::new();
        let (a, b) =
            (scratch.store.writer(WriteOptions::default()).unwrap(), scratch.store.writer(WriteOptions::default()).unwrap());
        for (writer, seeds) in [(&a, 0..1), (&b, 1..3)] {
            for chunk in [noises(9..10), noises(seeds)].concat() {
                writer.put(ChunkId::of(&chunk), &chunk).unwrap();
            }
        }
        a.finish().unwrap();
        b.finish().unwrap();
        overwrite(&scratch.files("packs")[rotten], |bytes| bytes[500] ^= 1);
        scratch.gc(&noises(9..10), GcOptions::default()).unwrap();
        assert_eq!(scratch.reopened().read(&ChunkId::of(&noise(9, 1000)), 1000).unwrap(), noise(9, 1000));
    }
}

#[test]
fn gc_leaves_a_damaged_pack_alone_and_says_so() {
    let scratch = Scratch::new();
    scratch.put_all(&noises(0..4));
    let pack = scratch.files("packs")[0].clone();
    overwrite(&pack, |bytes| bytes[500] ^= 1);
    let report = scratch.gc(&noises(0..1), GcOptions::default()).unwrap();
    assert_eq!((report.findings.len(), report.removed_packs), (1, 0));
    assert!(pack.exists());
    overwrite(&pack, |bytes| bytes.truncate(4000));
    let report = scratch.gc(&[], GcOptions::default()).unwrap();
    assert_eq!((report.findings.len(), report.removed_packs), (1, 0));
    assert!(pack.exists());
}

#[test]
fn a_pack_that_a_rewrite_makes_anew_is_not_removed() {
    let scratch = Scratch::new();
    // Pack A holds 0 and 1; pack B holds 0, 1 and 2 and is asked first. Rewriting B without 2 gives A again.
    let (a, b) = (scratch.store.writer(WriteOptions::default()).unwrap(), scratch.store.writer(WriteOptions::default()).unwrap());
    for (writer, seeds) in [(&a, 0..2), (&b, 0..3)] {
        noises(seeds).iter().for_each(|chunk| _ = writer.put(ChunkId::of(chunk), chunk).unwrap());
    }
    a.finish().unwrap();
    b.finish().unwrap();
    let report = scratch.gc(&noises(0..2), GcOptions::default()).unwrap();
    assert_eq!((report.removed_packs, report.rewritten_packs), (1, 1));
    scratch.assert_has(&noises(0..2), &noises(2..3));
}

impl Scratch {
    fn recompress(&self, level: i32) -> Recompressed {
        let how = Recompress { level, dry_run: false, until: None };
        self.store.recompress(&how, &Progress::default()).unwrap()
    }
}

#[test]
fn what_is_compressed_once_more_is_smaller_and_all_there_and_done() {
    let scratch = Scratch::new();
    let chunks: Vec<Vec<u8>> = (0..60).map(|at| if at % 5 == 4 { noise(at, 30_000) } else { text(2 * at, 100_000) }).collect();
    for some in chunks.chunks(7) {
        scratch.put_all(some);
    }
    let before = scratch.store.stats().unwrap();
    let told = scratch.store.recompress(&Recompress { level: 15, dry_run: true, until: None }, &Progress::default()).unwrap();
    assert_eq!((told.packs, told.left_packs, scratch.files("packs").len()), (0, 9, 9));
    let done = scratch.recompress(15);
    assert_eq!((done.packs, done.left_packs, done.cut_short), (9, 0, None));
    assert!(done.bytes_after < done.bytes_before * 97 / 100, "{done:?}");
    let after = scratch.store.stats().unwrap();
    assert_eq!((after.packs, after.chunks, after.plain_bytes), (1, before.chunks, before.plain_bytes));
    scratch.assert_has(&chunks, &[]);
    assert!(scratch.check().is_empty());
    assert_eq!(scratch.recompress(15), Recompressed::default(), "there is nothing left to do");
    assert_eq!(scratch.recompress(3), Recompressed::default());
    // At another level nothing of it goes, nor when the note of it is damaged.
    assert_eq!(scratch.recompress(17).packs, 1);
    overwrite(&scratch.root().join("index/maintained"), |bytes| bytes[30] ^= 1);
    assert_eq!(scratch.recompress(17).packs, 1);
    assert_eq!(scratch.store.stats().unwrap().chunks, before.chunks);
    scratch.assert_has(&chunks, &[]);
    assert!(scratch.check().is_empty());
}

#[test]
fn what_was_stored_plain_without_a_try_gets_smaller() {
    let scratch = Scratch::new();
    // After so many that do not pay, the writer tries only some.
    let chunks: Vec<Vec<u8>> = noises(0..9).into_iter().chain([text(0, 100_000)]).collect();
    scratch.put_all(&chunks);
    let done = scratch.recompress(15);
    assert!(done.bytes_before - done.bytes_after > 50_000, "{done:?}");
    scratch.assert_has(&chunks, &[]);
}

#[test]
fn while_somebody_stores_chunks_the_old_packs_stay_and_go_the_next_time() {
    let scratch = Scratch::new();
    let chunks: Vec<Vec<u8>> = (0..30).map(|at| text(2 * at, 100_000)).collect();
    scratch.put_all(&chunks);
    let lease = scratch.store.lease().unwrap();
    let done = scratch.recompress(15);
    assert_eq!((done.packs, done.cut_short), (1, Some(CutShort::Busy)));
    assert_eq!(scratch.files("packs").len(), 2);
    // What was done rots before the old pack is gone: that is needed, then.
    let noted = fs::read_to_string(scratch.root().join("index/maintained")).unwrap();
    let new = scratch.files("packs").into_iter().find(|path| noted.contains(path.file_stem().unwrap().to_str().unwrap()));
    overwrite(&new.unwrap(), |bytes| bytes[5000] ^= 1);
    drop(lease);
    let done =
        scratch.reopened().recompress(&Recompress { level: 15, dry_run: false, until: None }, &Progress::default()).unwrap();
    assert_eq!((done.packs, done.cut_short), (1, None));
    assert!(done.bytes_after < 50_000, "only the one chunk is written again: {done:?}");
    let store = scratch.reopened();
    chunks.iter().for_each(|chunk| assert!(store.read(&ChunkId::of(chunk), chunk.len()).unwrap() == *chunk));
}

#[test]
fn a_damaged_pack_stays_and_the_others_are_compressed_once_more() {
    let scratch = Scratch::new();
    let halves = [0, 100].map(|seed| (0..20).map(|at| text(seed + 2 * at, 100_000)).collect::<Vec<_>>());
    for half in &halves {
        scratch.put_all(half);
    }
    let damaged = scratch.files("packs").remove(0);
    overwrite(&damaged, |bytes| bytes[3000] ^= 1);
    let done = scratch.recompress(15);
    assert_eq!((done.packs, done.findings.len(), damaged.exists()), (1, 1, true));
    assert_eq!(done.findings[0].file, damaged);
    assert_eq!(scratch.check().len(), 1);
    // It is looked at again: what was lost may have come back.
    assert_eq!(scratch.recompress(15).findings.len(), 1);
    assert_eq!(scratch.files("packs").len(), 2);
}

#[test]
fn segments_are_merged_when_there_are_many() {
    let scratch = Scratch::new();
    for seed in 0..40 {
        scratch.put_all(&noises(seed..seed + 1));
    }
    let n_segments = scratch.files("index").iter().filter(|path| path.extension().is_some()).count();
    assert!(n_segments < 8, "{n_segments} segments");
    scratch.assert_has(&noises(0..40), &[]);
}

// ---- everything at once, against a model

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>),
    Abandon(Vec<u8>),
    Gc { live: u64, ratio: u8 },
    Reopen,
    Rebuild,
    LoseIndexFile(u8),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let seeds = || proptest::collection::vec(0..64u8, 0..12);
    proptest::collection::vec(
        prop_oneof![
            4 => seeds().prop_map(Step::Put),
            1 => seeds().prop_map(Step::Abandon),
            2 => (any::<u64>(), 0..100u8).prop_map(|(live, ratio)| Step::Gc { live, ratio }),
            1 => Just(Step::Reopen),
            1 => Just(Step::Rebuild),
            1 => any::<u8>().prop_map(Step::LoseIndexFile),
        ],
        1..25,
    )
}

fn model_chunk(seed: u8) -> Vec<u8> {
    if seed.is_multiple_of(2) { noise(seed.into(), usize::from(seed) * 30) } else { text(seed.into(), usize::from(seed) * 50) }
}

/// Plays `steps` on a real store; what must be there is kept in a set, whatever else is there does no harm.
fn play(steps: &[Step]) {
    let mut scratch = Scratch::new();
    let mut present = std::collections::BTreeSet::new();
    let put = |scratch: &Scratch, seeds: &[u8]| {
        let writer = scratch.store.writer(WriteOptions::default()).unwrap();
        for chunk in seeds.iter().map(|seed| model_chunk(*seed)) {
            writer.put(ChunkId::of(&chunk), &chunk).unwrap();
        }
        writer
    };
    for step in steps {
        match step {
            Step::Put(seeds) => {
                put(&scratch, seeds).finish().unwrap();
                present.extend(seeds);
            }
            Step::Abandon(seeds) => drop(put(&scratch, seeds)),
            Step::Gc { live, ratio } => {
                present.retain(|seed| live >> seed & 1 == 1);
                let chunks: Vec<_> = present.iter().map(|seed| model_chunk(*seed)).collect();
                let options = GcOptions { max_dead_ratio: f64::from(*ratio) / 100.0, ..GcOptions::default() };
                let report = scratch.gc(&chunks, options).unwrap();
                assert_eq!((report.live_chunks, report.absent_chunks), (present.len() as u64, 0));
                if *ratio == 0 {
                    let here = (0..64).filter(|seed| scratch.store.contains(&ChunkId::of(&model_chunk(*seed))).unwrap());
                    assert_eq!(here.collect::<std::collections::BTreeSet<u8>>(), present);
                }
            }
            Step::Reopen => scratch.store = scratch.reopened(),
            Step::Rebuild => scratch.store.rebuild_index().unwrap(),
            Step::LoseIndexFile(which) => {
                let files = scratch.files("index");
                files.get(usize::from(*which) % files.len().max(1)).map_or(Ok(()), fs::remove_file).unwrap();
                scratch.store = scratch.reopened();
            }
        }
        for seed in &present {
            assert_eq!(scratch.store.read(&ChunkId::of(&model_chunk(*seed)), 4000).unwrap(), model_chunk(*seed));
        }
    }
    scratch.check();
    assert_eq!(scratch.check(), []);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_store_has_what_a_model_has(steps in steps()) {
        play(&steps);
    }
}
