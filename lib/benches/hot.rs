//! The hot paths, one by one: `cargo bench -p git-devops-lib`, or counted in instructions by `cargo xtask instructions`.
//!
//! Each benchmark does its work in a function of the same name in [`work`], which is never inlined, so that a profiler can count just that.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use git_devops::chunk::{Chunker, ChunkerSpec};
use git_devops::git::codec::Inflater;
use git_devops::git::index::{Index, IndexBuilder, IndexEntry};
use git_devops::git::object::object_id;
use git_devops::git::{Git, Identity, ObjectKind, Objects, Oid, PackWriter};
use git_devops::id::ChunkId;
use git_devops::metadata::{DirMetadata, Metadata};
use git_devops::progress::Progress;
use git_devops::repo::exclude::{ExcludeOptions, Excludes};
use git_devops::repo::scan::{ScanOptions, Scope};
use git_devops::repo::stage::{CommitInfo, record};
use git_devops::repo::status::Status;
use git_devops::repo::{Places, Repo};
use git_devops::safepath::{FileKind, Time};
use git_devops::store::{Store, WriteOptions};

fn main() {
    divan::main();
}

/// What is measured, and nothing of how it was prepared.
mod work {
    use super::*;

    #[inline(never)]
    pub fn cut(chunker: &mut Chunker, data: &[u8]) -> usize {
        chunker.reset();
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
    pub fn compress(chunks: &[&[u8]]) -> usize {
        let level = WriteOptions::default().level;
        chunks.iter().map(|chunk| git_devops::store::codec::compress(chunk, level, <[u8]>::len).unwrap()).sum()
    }

    #[inline(never)]
    pub fn decompress(frames: &[Vec<u8>], plain_len: usize, buffer: &mut Vec<u8>) {
        for frame in frames {
            git_devops::store::codec::decompress(frame, plain_len, buffer).unwrap();
        }
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
    pub fn object_ids(blobs: &[&[u8]]) -> Oid {
        blobs.iter().map(|blob| object_id(ObjectKind::Blob, blob).unwrap()).max().expect("BUG: there are blobs")
    }

    #[inline(never)]
    pub fn deflate(blobs: &[&[u8]]) -> usize {
        blobs.iter().map(|blob| git_devops::git::codec::deflate(blob, 1, <[u8]>::len)).sum()
    }

    #[inline(never)]
    pub fn inflate(inflater: &mut Inflater, deflated: &[Vec<u8>], size: u64) -> usize {
        deflated.iter().map(|content| inflater.inflate(content, size).unwrap().expect("BUG: it was deflated").len()).sum()
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

    #[inline(never)]
    pub fn status(repo: &Repo, options: &ScanOptions) -> Status {
        git_devops::repo::status::status(repo, options, &Progress::default()).unwrap()
    }
}

#[divan::bench(args = chunkers().into_iter().map(|(name, _)| name))]
fn cut(bencher: Bencher, name: &str) {
    let (_, mut chunker) = chunkers().into_iter().find(|(known, _)| known == name).expect("BUG: the name is one of these");
    let data = noise(1, 16 << 20);
    bencher.counter(BytesCount::new(data.len())).bench_local(|| work::cut(&mut chunker, black_box(&data)));
}

#[divan::bench]
fn chunk_ids(bencher: Bencher) {
    let data = noise(2, 16 << 20);
    bencher.counter(BytesCount::new(data.len())).bench(|| work::chunk_ids(black_box(&data)));
}

#[divan::bench(args = KINDS)]
fn compress(bencher: Bencher, kind: &str) {
    let data = data(kind, 4, 8 << 20);
    let chunks: Vec<_> = data.chunks(CHUNK_LEN).collect();
    bencher.counter(BytesCount::new(data.len())).bench(|| work::compress(black_box(&chunks)));
}

/// Of text only: noise is stored as it is.
#[divan::bench]
fn decompress(bencher: Bencher) {
    let data = text(4, 8 << 20);
    let compressed = |chunk| git_devops::store::codec::compress(chunk, WriteOptions::default().level, <[u8]>::to_vec).unwrap();
    let frames: Vec<_> = data.chunks(CHUNK_LEN).map(compressed).collect();
    let mut buffer = Vec::new();
    bencher.counter(BytesCount::new(data.len())).bench_local(|| work::decompress(black_box(&frames), CHUNK_LEN, &mut buffer));
}

#[divan::bench(args = KINDS)]
fn store_chunks(bencher: Bencher, kind: &str) {
    let data = data(kind, 3, 8 << 20);
    let chunks: Vec<_> = data.chunks(CHUNK_LEN).map(|chunk| (ChunkId::of(chunk), chunk)).collect();
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

#[divan::bench(args = ["present", "absent"])]
fn look_up(bencher: Bencher, which: &str) {
    let stored = Stored::new(20_000);
    let absent: Vec<_> = (0..20_000_u32).map(|at| ChunkId::of(&at.to_be_bytes())).collect();
    let ids = if which == "present" { &stored.ids } else { &absent };
    bencher.counter(ItemsCount::new(ids.len())).bench(|| work::look_up(&stored.store, black_box(ids)));
}

#[divan::bench]
fn object_ids(bencher: Bencher) {
    let data = noise(5, 4 << 20);
    let blobs: Vec<_> = data.chunks(BLOB_LEN).collect();
    bencher.counter(BytesCount::new(data.len())).bench(|| work::object_ids(black_box(&blobs)));
}

#[divan::bench(args = KINDS)]
fn deflate(bencher: Bencher, kind: &str) {
    let data = data(kind, 6, 4 << 20);
    let blobs: Vec<_> = data.chunks(BLOB_LEN).collect();
    bencher.counter(BytesCount::new(data.len())).bench(|| work::deflate(black_box(&blobs)));
}

#[divan::bench(args = KINDS)]
fn inflate(bencher: Bencher, kind: &str) {
    let data = data(kind, 6, 4 << 20);
    // The header ends with the first byte that does not announce another one.
    let content = |encoded: &[u8]| encoded[1 + encoded.iter().position(|byte| byte & 0x80 == 0).unwrap()..].to_vec();
    let deflated: Vec<_> = data.chunks(BLOB_LEN).map(|blob| git_devops::git::codec::deflate(blob, 1, content)).collect();
    let mut inflater = Inflater::default();
    bencher
        .counter(BytesCount::new(data.len()))
        .bench_local(|| work::inflate(&mut inflater, black_box(&deflated), BLOB_LEN as u64));
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

#[divan::bench]
fn status(bencher: Bencher) {
    let committed = Committed::new(40, 50);
    bencher.counter(ItemsCount::new(committed.n_seen)).bench(|| work::status(&committed.repo, &committed.options));
}

/// Length of chunks as the usual chunker cuts them, in the mean.
const CHUNK_LEN: usize = 64 << 10;

/// Length of blobs as small files are.
const BLOB_LEN: usize = 8 << 10;

/// Returns the chunkers by name: the gear chunker once for each scan that this processor can run.
fn chunkers() -> Vec<(String, Chunker)> {
    let ChunkerSpec::Gear { min, avg, max } = ChunkerSpec::default() else { panic!("BUG: the default is another chunker") };
    let gear = Chunker::of_each_scan(min, avg, max).into_iter().map(|(scan, chunker)| (format!("gear-{scan}"), chunker));
    gear.chain([("rabin".to_owned(), Chunker::new(&"rabin".parse().unwrap()))]).collect()
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

/// A repository whose work tree is just what was committed; one thread looks at it, so that a profiler of that thread sees all.
struct Committed {
    repo: Repo,
    options: ScanOptions,
    n_seen: u64,
    _dir: tempfile::TempDir,
}

impl Committed {
    fn new(n_dirs: usize, n_files: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for at in 0..n_dirs {
            let path = dir.path().join(format!("dir-{at:03}"));
            std::fs::create_dir(&path).unwrap();
            (0..n_files).for_each(|at| std::fs::write(path.join(format!("file-{at:03}")), text(at as u64, 200)).unwrap());
        }
        // What is too young would be read again by each run.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let places = Places::of_directory(dir.path());
        Repo::init(&places, "main").unwrap();
        let mut repo = Repo::open(places).unwrap();
        repo.settings.n_threads = 1;
        let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude")).unwrap();
        let scope = Scope::Paths(vec![Vec::new()]);
        let mut options = ScanOptions { scope, excludes, one_file_system: false, by_reference: false };
        let identity = Identity { name: "bench".into(), email: "bench@localhost".into() };
        let info = CommitInfo { identity, time: 1_700_000_000, offset: 0, message: "all".into() };
        record(&repo, &options, Some(&info), &Progress::default()).unwrap();
        options.scope = Scope::Owned;
        // Not by the function of `work`, which would be counted twice.
        let status = git_devops::repo::status::status(&repo, &options, &Progress::default()).unwrap();
        assert!(status.staged.is_empty() && status.found.changes.is_empty(), "{status:?}");
        Self { repo, options, n_seen: status.found.n_seen, _dir: dir }
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

/// What data is, for [`data`].
const KINDS: [&str; 2] = ["text", "noise"];

fn data(kind: &str, seed: u64, len: usize) -> Vec<u8> {
    if kind == "text" { text(seed, len) } else { noise(seed, len) }
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
