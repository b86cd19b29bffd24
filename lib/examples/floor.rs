//! What our formats cost, whatever the program: the work that no snapshot, no first check and no restore gets around, and nothing else.
//!
//! `floor store TREE FILE` opens and reads every file of a tree, asks for its attributes, hashes and compresses its content as it is stored, and appends
//! that to FILE.git and FILE.chunks, by all threads. Left out is what makes a snapshot of it: cut points (pieces are of 64 KiB), what is known already,
//! names, order, trees, indexes, syncs. `floor check FILE` unpacks and hashes all of that again. `floor restore FILE DIR` does, too, and writes each file,
//! with an owner, a mode and a time, under a number. Left out is what makes a restore of it: what is there already, temporary names, directories,
//! links, extended attributes, syncs. Pieces of a large file come in any order, and each opens it and sets its metadata: there it costs more than it
//! would have to.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, Permissions};
use std::io::{BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::SystemTime;

use git_devops::durable::begin_writeback;
use git_devops::git::ObjectKind;
use git_devops::git::codec::{Inflater, deflate};
use git_devops::git::object::object_id;
use git_devops::id::ChunkId;
use git_devops::repo::DEFAULT_THRESHOLD;
use git_devops::store::codec::{compress, decompress};
use sha1dc::Hasher;

/// The level of both compressions.
const LEVEL: i32 = 1;
/// A chunk of a large file, in bytes; so much of one is the job of one thread; so much is written at once.
const CHUNK: usize = 64 << 10;
const STRETCH: u64 = 4 << 20;
const WRITE: usize = 256 << 10;
/// What stands before the id: two lengths, and where the piece belongs. An id is no longer than that of a chunk.
const N_NUMBERS: usize = 20;
const MOST_HEAD: usize = N_NUMBERS + 32;
/// Files in a directory.
const IN_DIR: u32 = 64;

const USAGE: &str = "usage: floor store TREE FILE, floor check FILE, or: floor restore FILE DIR";

fn main() {
    // A thread that ends for an error would be waited for.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(1);
    }));
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["store", tree, file] => store(Path::new(tree), file),
        ["check", file] => unpack(file, |_, _| ()),
        ["restore", file, dir] => unpack(file, |place, plain| restore(Path::new(dir), place, plain)),
        _ => panic!("{USAGE}"),
    }
}

fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn store(tree: &Path, file: &str) {
    let (git, chunks) = (Out::create(&format!("{file}.git")), Out::create(&format!("{file}.chunks")));
    let (jobs, n_files) = (Jobs::default(), AtomicU32::new(0));
    jobs.add(Job::Dir(tree.to_owned()));
    std::thread::scope(|scope| {
        for _ in 0..n_threads() {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                jobs.work(|job| match job {
                    Job::Dir(dir) => store_dir(&dir, &jobs, &n_files, &git, &mut buffer),
                    Job::Stretch(file, place, len) => store_stretch(&file, place, len, &chunks, &mut buffer),
                });
            });
        }
    });
    chunks.finish();
    // How many objects there are stands at the beginning of a pack: before they are counted nothing of it can be hashed.
    let mut hasher = Hasher::new();
    let (mut pack, mut piece) = (File::open(git.finish()).unwrap(), vec![0; WRITE]);
    loop {
        match pack.read(&mut piece).unwrap() {
            0 => break,
            n => hasher.update(&piece[..n]),
        }
    }
    hasher.finalize().unwrap();
}

/// Stores what is small in a directory, and leaves the rest as jobs.
fn store_dir(dir: &Path, jobs: &Jobs, n_files: &AtomicU32, git: &Out, buffer: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        if kind.is_dir() {
            jobs.add(Job::Dir(path));
        } else if kind.is_file() {
            let file = File::options().read(true).custom_flags(libc::O_NOATIME | libc::O_NOFOLLOW).open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            let number = n_files.fetch_add(1, Ordering::Relaxed);
            if len < DEFAULT_THRESHOLD {
                buffer.resize(len as usize, 0);
                file.read_exact_at(buffer, 0).unwrap();
                ask_for_attributes(&file);
                let oid = object_id(ObjectKind::Blob, buffer).unwrap();
                deflate(buffer, LEVEL, |stored| git.append(Place { number, at: 0 }, buffer.len(), oid.as_slice(), stored));
            } else {
                ask_for_attributes(&file);
                let file = Arc::new(file);
                let stretch = |at| Job::Stretch(Arc::clone(&file), Place { number, at }, STRETCH.min(len - at));
                (0..len).step_by(STRETCH as usize).for_each(|at| jobs.add(stretch(at)));
            }
        }
    }
}

/// Asks for what stands in no listing: extended attributes, flags, and whether the file changed in the meantime.
fn ask_for_attributes(file: &File) {
    rustix::fs::flistxattr(file, &mut [0_u8; 1024]).unwrap();
    // Symlinks and some filesystems have none.
    let _ = rustix::fs::ioctl_getflags(file);
    file.metadata().unwrap();
}

fn store_stretch(file: &File, place: Place, len: u64, chunks: &Out, buffer: &mut Vec<u8>) {
    let end = place.at + len;
    let mut at = place.at;
    while at < end {
        // Holes are not read.
        let data = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)).unwrap_or(end).min(end);
        let n = (end - data).min(CHUNK as u64);
        buffer.resize(n as usize, 0);
        file.read_exact_at(buffer, data).unwrap();
        if n > 0 {
            let id = ChunkId::of(buffer);
            let place = Place { at: data, ..place };
            compress(buffer, LEVEL, |stored| chunks.append(place, buffer.len(), id.as_bytes(), stored)).unwrap();
        }
        at = data + n;
    }
}

/// Unpacks and hashes all that was stored, and hands it to `take`.
fn unpack(file: &str, take: impl Fn(Place, &[u8]) + Sync) {
    let of_blob = |inflater: &mut Inflater, record: &Record, _: &mut Vec<u8>| {
        let n_header = 1 + record.stored.iter().take_while(|byte| **byte & 0x80 != 0).count();
        let plain = inflater.inflate(&record.stored[n_header..], record.plain_len as u64).unwrap().unwrap();
        assert_eq!(object_id(ObjectKind::Blob, &plain).unwrap().as_slice(), record.id);
        take(record.place, &plain);
    };
    let of_chunk = |_: &mut Inflater, record: &Record, buffer: &mut Vec<u8>| {
        let plain = if record.stored.len() < record.plain_len {
            decompress(&record.stored, record.plain_len, buffer).unwrap();
            buffer
        } else {
            &record.stored
        };
        assert_eq!(ChunkId::of(plain).as_bytes()[..], record.id);
        take(record.place, plain);
    };
    unpack_each(&format!("{file}.git"), 20, of_blob);
    unpack_each(&format!("{file}.chunks"), 32, of_chunk);
}

fn unpack_each(file: &str, id_len: usize, take: impl Fn(&mut Inflater, &Record, &mut Vec<u8>) + Sync) {
    let reader = Mutex::new(BufReader::with_capacity(WRITE, File::open(file).unwrap()));
    std::thread::scope(|scope| {
        for _ in 0..n_threads() {
            scope.spawn(|| {
                let (mut inflater, mut buffer) = (Inflater::default(), Vec::new());
                loop {
                    let records = some_records(&mut *reader.lock().unwrap(), id_len);
                    records.iter().for_each(|record| take(&mut inflater, record, &mut buffer));
                    if records.is_empty() {
                        break;
                    }
                }
            });
        }
    });
}

/// Writes a piece of a file; with each piece the metadata, since nobody knows which one is the last.
fn restore(out: &Path, place: Place, plain: &[u8]) {
    let dir = out.join((place.number / IN_DIR).to_string());
    let open = || File::options().write(true).create(true).truncate(false).open(dir.join(place.number.to_string()));
    let file = open().unwrap_or_else(|_| {
        // Another thread may have made it.
        let _ = std::fs::create_dir(&dir);
        open().unwrap()
    });
    file.write_all_at(plain, place.at).unwrap();
    std::os::unix::fs::fchown(&file, Some(0), Some(0)).unwrap();
    file.set_permissions(Permissions::from_mode(0o644)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    if plain.len() >= CHUNK {
        begin_writeback(&file).unwrap();
    }
}

/// Where a piece belongs: in which file, counted as they were found, and where in it.
#[derive(Clone, Copy)]
struct Place {
    number: u32,
    at: u64,
}

struct Record {
    plain_len: usize,
    place: Place,
    id: Vec<u8>,
    stored: Vec<u8>,
}

/// Reads records that are about as long together as what is written at once; none at the end.
fn some_records(reader: &mut impl Read, id_len: usize) -> Vec<Record> {
    let (mut records, mut n_bytes) = (Vec::new(), 0);
    let mut head = [0; MOST_HEAD];
    let head = &mut head[..N_NUMBERS + id_len];
    while n_bytes < WRITE && reader.read_exact(head).is_ok() {
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut stored = vec![0; number(4) as usize];
        reader.read_exact(&mut stored).unwrap();
        n_bytes += stored.len();
        let place = Place { number: number(8), at: u64::from_le_bytes(head[12..N_NUMBERS].try_into().unwrap()) };
        records.push(Record { plain_len: number(0) as usize, place, id: head[N_NUMBERS..].to_vec(), stored });
    }
    records
}

/// A file that all threads append to.
struct Out {
    path: PathBuf,
    file: File,
    buffer: Mutex<(u64, Vec<u8>)>,
}

impl Out {
    fn create(path: &str) -> Self {
        Self { path: path.into(), file: File::create(path).unwrap(), buffer: Mutex::default() }
    }

    fn append(&self, place: Place, plain_len: usize, id: &[u8], stored: &[u8]) {
        let mut buffer = self.buffer.lock().unwrap();
        for number in [plain_len as u32, stored.len() as u32, place.number] {
            buffer.1.extend_from_slice(&number.to_le_bytes());
        }
        for part in [&place.at.to_le_bytes()[..], id, stored] {
            buffer.1.extend_from_slice(part);
        }
        if buffer.1.len() >= WRITE {
            let (at, full) = (buffer.0, std::mem::replace(&mut buffer.1, Vec::with_capacity(WRITE + 2 * CHUNK)));
            buffer.0 += full.len() as u64;
            drop(buffer);
            self.write(at, &full);
        }
    }

    /// Writes outside of the lock; the disk begins with it soon.
    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
        if at / STRETCH != (at + bytes.len() as u64) / STRETCH {
            begin_writeback(&self.file).unwrap();
        }
    }

    fn finish(self) -> PathBuf {
        let (at, rest) = self.buffer.into_inner().unwrap();
        self.file.write_all_at(&rest, at).unwrap();
        self.path
    }
}

enum Job {
    Dir(PathBuf),
    Stretch(Arc<File>, Place, u64),
}

/// What is to be done, the newest first, and how much of it is not done.
#[derive(Default)]
struct Jobs {
    state: Mutex<(Vec<Job>, usize)>,
    changed: Condvar,
}

impl Jobs {
    fn add(&self, job: Job) {
        let mut state = self.state.lock().unwrap();
        state.0.push(job);
        state.1 += 1;
        self.changed.notify_one();
    }

    /// Does jobs until there are none, and none that could make more.
    fn work(&self, mut act: impl FnMut(Job)) {
        let mut state = self.state.lock().unwrap();
        while state.1 > 0 {
            let Some(job) = state.0.pop() else {
                state = self.changed.wait(state).unwrap();
                continue;
            };
            drop(state);
            act(job);
            state = self.state.lock().unwrap();
            state.1 -= 1;
            if state.1 == 0 {
                self.changed.notify_all();
            }
        }
    }
}
