//! The hot paths, one by one: `cargo bench -p git-devops-lib`, or counted in instructions by `cargo xtask instructions`.
//!
//! Each benchmark does its work in a function of the same name in [`work`], which is never inlined, so that a profiler can count just that.

use std::path::{Path, PathBuf};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use git_devops::chunk::ChunkerSpec;
use git_devops::git::index::{Index, IndexBuilder, IndexEntry};
use git_devops::git::{Git, ObjectKind, Objects, Oid, PackWriter};
use git_devops::id::ChunkId;
use git_devops::metadata::{DirMetadata, Metadata};
use git_devops::safepath::{FileKind, Time};
use git_devops::store::{Store, WriteOptions};

fn main() {
    divan::main();
}

/// What is measured, and nothing of how it was prepared.
mod work {
    use super::*;
    use git_devops::chunk::Chunker;

    #[inline(never)]
    pub fn cut(spec: &ChunkerSpec, data: &[u8]) -> usize {
        let mut chunker = Chunker::new(spec);
        let (mut at, mut n_chunks) = (0, 0);
        while at < data.len() {
            at += chunker.cut(&data[at..]);
            n_chunks += 1;
        }
        n_chunks
    }

    #[inline(never)]
    pub fn chunk_ids(data: &[u8]) -> ChunkId {
        data.chunks(64 << 10).map(ChunkId::of).max().expect("BUG: there is data")
    }

    #[inline(never)]
    pub fn store_chunks(store: &Store, chunks: &[(ChunkId, &[u8])]) {
        let writer = store.writer(WriteOptions::default()).unwrap();
        for (id, plain) in chunks {
            writer.put(*id, plain).unwrap();
        }
        writer.finish().unwrap();
    }

    #[inline(never)]
    pub fn read_chunks(store: &Store, ids: &[ChunkId], buffer: &mut Vec<u8>) -> usize {
        ids.iter().map(|id| store.read_into(id, buffer, 256 << 10).map(|()| buffer.len()).unwrap()).sum()
    }

    #[inline(never)]
    pub fn look_up(store: &Store, ids: &[ChunkId]) -> usize {
        ids.iter().filter(|id| store.contains(id).unwrap()).count()
    }

    #[inline(never)]
    pub fn pack_blobs(git_dir: &Path, objects: &Objects, blobs: &[Vec<u8>]) {
        let writer = PackWriter::new(git_dir, objects).unwrap();
        for blob in blobs {
            writer.blob(blob).unwrap();
        }
        // Dropped unfinished: the disk is not what is measured here.
    }

    #[inline(never)]
    pub fn read_objects(objects: &Objects, oids: &[Oid]) -> usize {
        oids.iter().map(|oid| objects.find(oid).unwrap().expect("BUG: it was written").1.len()).sum()
    }

    #[inline(never)]
    pub fn walk_trees(objects: &Objects, root: &Oid) -> usize {
        let entries = objects.tree(root).unwrap();
        entries.iter().map(|entry| if entry.is_dir() { walk_trees(objects, &entry.oid) } else { 1 }).sum()
    }

    #[inline(never)]
    pub fn encode_metadata(dir: &DirMetadata) -> Vec<u8> {
        dir.encode()
    }

    #[inline(never)]
    pub fn decode_metadata(text: &[u8]) -> DirMetadata {
        DirMetadata::decode(text).unwrap()
    }

    #[inline(never)]
    pub fn read_index(path: &Path) -> Index {
        Index::read(path).unwrap()
    }

    #[inline(never)]
    pub fn write_index(index: &Index, git_dir: &Path) {
        index.write(git_dir).unwrap();
    }
}

#[divan::bench(args = ["gear", "rabin", "fixed"])]
fn cut(bencher: Bencher, spec: &str) {
    let (spec, data) = (spec.parse().unwrap(), noise(1, 16 << 20));
    bencher.counter(BytesCount::new(data.len())).bench(|| work::cut(&spec, black_box(&data)));
}

#[divan::bench]
fn chunk_ids(bencher: Bencher) {
    let data = noise(2, 16 << 20);
    bencher.counter(BytesCount::new(data.len())).bench(|| work::chunk_ids(black_box(&data)));
}

#[divan::bench(args = [false, true])]
fn store_chunks(bencher: Bencher, is_text: bool) {
    let data = if is_text { text(3, 8 << 20) } else { noise(3, 8 << 20) };
    let chunks: Vec<_> = data.chunks(64 << 10).map(|chunk| (ChunkId::of(chunk), chunk)).collect();
    let new_store = || {
        let dir = tempfile::tempdir().unwrap();
        (Store::create(&dir.path().join("store")).unwrap(), dir)
    };
    let bencher = bencher.counter(BytesCount::new(data.len()));
    bencher.with_inputs(new_store).bench_refs(|(store, _dir)| work::store_chunks(store, &chunks));
}

#[divan::bench]
fn read_chunks(bencher: Bencher) {
    let stored = Stored::new(128);
    let mut buffer = Vec::new();
    bencher
        .counter(BytesCount::new(stored.ids.len() * STORED_LEN))
        .bench_local(|| work::read_chunks(&stored.store, &stored.ids, &mut buffer));
}

#[divan::bench(args = [true, false])]
fn look_up(bencher: Bencher, is_there: bool) {
    let stored = Stored::new(20_000);
    let absent: Vec<_> = (0..20_000_u32).map(|at| ChunkId::of(&at.to_be_bytes())).collect();
    let ids = if is_there { &stored.ids } else { &absent };
    bencher.counter(ItemsCount::new(ids.len())).bench(|| work::look_up(&stored.store, black_box(ids)));
}

#[divan::bench]
fn pack_blobs(bencher: Bencher) {
    let repository = Repository::new(0);
    let blobs: Vec<_> = (0..2000).map(|at| text(at, 2000)).collect();
    bencher
        .counter(BytesCount::new(2000 * 2000_usize))
        .bench(|| work::pack_blobs(&repository.git_dir, &repository.objects, &blobs));
}

#[divan::bench]
fn read_objects(bencher: Bencher) {
    let repository = Repository::new(2000);
    bencher.counter(ItemsCount::new(repository.blobs.len())).bench(|| work::read_objects(&repository.objects, &repository.blobs));
}

#[divan::bench]
fn walk_trees(bencher: Bencher) {
    let repository = Repository::new(2000);
    bencher.counter(ItemsCount::new(repository.blobs.len())).bench(|| work::walk_trees(&repository.objects, &repository.root));
}

#[divan::bench]
fn encode_metadata(bencher: Bencher) {
    let dir = directory(1000);
    bencher.counter(ItemsCount::new(1000_usize)).bench(|| work::encode_metadata(black_box(&dir)));
}

#[divan::bench]
fn decode_metadata(bencher: Bencher) {
    let text = directory(1000).encode();
    bencher.counter(ItemsCount::new(1000_usize)).bench(|| work::decode_metadata(black_box(&text)));
}

#[divan::bench]
fn read_index(bencher: Bencher) {
    let dir = tempfile::tempdir().unwrap();
    index(20_000).write(dir.path()).unwrap();
    let path = dir.path().join("index");
    bencher.counter(ItemsCount::new(20_000_usize)).bench(|| work::read_index(&path));
}

#[divan::bench]
fn write_index(bencher: Bencher) {
    let (dir, index) = (tempfile::tempdir().unwrap(), index(20_000));
    bencher.counter(ItemsCount::new(20_000_usize)).bench(|| work::write_index(&index, dir.path()));
}

/// Length of the chunks in a [`Stored`].
const STORED_LEN: usize = 8 << 10;

/// A store with chunks in it.
struct Stored {
    store: Store,
    ids: Vec<ChunkId>,
    _dir: tempfile::TempDir,
}

impl Stored {
    fn new(n_chunks: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("store")).unwrap();
        let writer = store.writer(WriteOptions::default()).unwrap();
        let put = |at: usize| {
            let plain = text(at as u64, STORED_LEN);
            let id = ChunkId::of(&plain);
            writer.put(id, &plain).unwrap();
            id
        };
        let ids = (0..n_chunks).map(put).collect();
        writer.finish().unwrap();
        Self { store, ids, _dir: dir }
    }
}

/// A git repository with a pack of blobs, fifty in each tree.
struct Repository {
    git_dir: PathBuf,
    objects: Objects,
    blobs: Vec<Oid>,
    root: Oid,
    _dir: tempfile::TempDir,
}

impl Repository {
    fn new(n_blobs: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let git_dir = dir.path().join("repo");
        Git::init(&git_dir, "main").unwrap();
        let objects = Objects::open(&git_dir).unwrap();
        let writer = PackWriter::new(&git_dir, &objects).unwrap();
        let blobs: Vec<Oid> = (0..n_blobs).map(|at| writer.put(ObjectKind::Blob, &text(at as u64, 2000)).unwrap()).collect();
        let paths = blobs.iter().enumerate().map(|(at, oid)| (format!("dir-{:03}/file-{at:05}", at / 50), 0o100644, *oid));
        let root = git_devops::git::write_tree(paths, &writer).unwrap();
        if let Some(kept) = writer.finish().unwrap() {
            kept.release().unwrap();
        }
        objects.refresh();
        Self { git_dir, objects, blobs, root, _dir: dir }
    }
}

/// Returns metadata as a busy directory has it: times everywhere, an odd mode and an attribute here and there.
fn directory(n_entries: usize) -> DirMetadata {
    let mut dir = DirMetadata::new();
    for at in 0..n_entries {
        let mut metadata = Metadata::new(FileKind::File);
        metadata.mtime = Some(Time { secs: 1_700_000_000 + at as i64, nanos: (at * 7919) as u32 });
        (metadata.uid, metadata.user) = (0, Some(b"root".to_vec()));
        (metadata.gid, metadata.group) = (0, Some(b"root".to_vec()));
        if at % 10 == 0 {
            metadata.mode = 0o4755;
        }
        if at % 50 == 0 {
            metadata.xattrs.push((b"user.comment".to_vec(), b"here and there".to_vec()));
        }
        dir.entries.insert(format!("file-{at:05}.conf").into_bytes(), metadata);
    }
    dir
}

fn index(n_entries: usize) -> Index {
    let mut builder = IndexBuilder::default();
    let oid = git_devops::git::empty_tree();
    for at in 0..n_entries {
        let path = format!("usr/share/doc/package-{:04}/file-{at:06}", at / 20);
        let entry = IndexEntry {
            path: path.as_bytes(),
            oid,
            mode: 0o100644,
            stat: Default::default(),
            skip_worktree: false,
            intent_to_add: false,
        };
        builder.push(&entry).unwrap();
    }
    builder.build()
}

/// Returns bytes that nothing compresses, the same for each seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Returns lines of words, the same for each seed.
fn text(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = ["host ", "listen ", "enabled ", "= ", "true\n", "path ", "/usr/share ", "0x17\n"];
    let draws = noise(seed, len / 2 + 8);
    let mut text: Vec<u8> = draws.iter().flat_map(|draw| WORDS[(draw % 8) as usize].bytes()).take(len).collect();
    text.resize(len, b'\n');
    text
}
