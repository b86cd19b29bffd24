//! Races a user who swaps names against what root does in that user's directory: `path_race [--tries N] [--seconds N] [--scratch DIR] [OPERATION...]`.
//!
//! A process of user 65534 exchanges directories with symlinks, files with symlinks, hard links and fifos, and our temporary files with hard links,
//! as fast as it can, in a directory of its own within a work tree, while the library stores, restores and makes temporary files there as root.
//! After each run every file outside must be what it was. A naive program, in the same harness, must be seen to escape. Prints a markdown table;
//! ends with 1 if anything escaped, or if the naive program did not. Needs root.
//!
//! This is no test of the test suite's kind because it needs the library in its own process: a million runs of the program would take days.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use git_devops::error::Result;
use git_devops::git::{Identity, Index, PackWriter};
use git_devops::progress::Progress;
use git_devops::repo::exclude::{ExcludeOptions, Excludes};
use git_devops::repo::restore::{RestoreOptions, restore};
use git_devops::repo::scan::{ScanOptions, Scope, Sink, scan};
use git_devops::repo::stage::{CommitInfo, record};
use git_devops::repo::{Places, Repo};
use git_devops::safepath::{Dir, FileKind};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};

/// The user who swaps names.
const MALLORY: u32 = 65534;
/// What only root may read; none of it may get into a commit.
const SECRET: &str = "SECRET-CONTENT";
const SECRET_XATTR: &str = "SECRET-XATTR";
/// An attribute of a file of root's that has a second name in the user's directory: it may be stored, but only with that file's own owner.
const LINKED_XATTR: &str = "LINKED-XATTR";
/// The content of every stored file, and of the file of root's that has a second name: so that content alone tells nothing.
const SAME: &str = "the same everywhere\n";
/// So many of each kind of pair.
const COPIES: usize = 3;
/// A naive program is known to be one when it has let so many escape; it gets so many tries.
const NAIVE_ESCAPES: usize = 10;
const NAIVE_TRIES: u64 = 1_000_000;
/// Nothing that is done once takes so long, unless it hangs.
const HANG: Duration = Duration::from_secs(20);

/// What is swapped: the name in the commit, and what its partner is.
const PAIRS: &[(&str, Bait)] = &[
    ("dir", Bait::Symlink("../../victim/dir")),
    ("via", Bait::Symlink("../../victim/secret")),
    ("file", Bait::Link("linked")),
    ("wait", Bait::Fifo),
    ("node", Bait::Link("fifo")),
    ("link", Bait::Link("symlink")),
];

#[derive(Clone, Copy)]
enum Bait {
    Symlink(&'static str),
    Link(&'static str),
    Fifo,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, dir] = &args[..]
        && verb == "swap"
    {
        swap_for_ever(Path::new(dir));
    }
    let (mut tries, mut seconds, mut scratch, mut operations) = (1_000_000, u64::MAX, PathBuf::from("/tmp"), Vec::new());
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--tries" => tries = rest.next().and_then(|n| n.parse().ok()).expect("--tries needs a number"),
            "--seconds" => seconds = rest.next().and_then(|n| n.parse().ok()).expect("--seconds needs a number"),
            "--scratch" => scratch = rest.next().expect("--scratch needs a directory").into(),
            _ => operations.push(arg),
        }
    }
    assert!(rustix::process::geteuid().is_root(), "only root has something to lose");
    let scratch = tempfile::Builder::new().prefix("gdo-race-").tempdir_in(scratch).expect("a scratch directory");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut is_bad = false;
    println!("| operation | tries | escapes | runs | seconds |\n|---|---:|---:|---:|---:|");
    for (name, operation, is_naive) in OPERATIONS {
        if !operations.is_empty() && !operations.iter().any(|wanted| wanted == name) {
            continue;
        }
        let world = World::new(&scratch.path().join(name));
        let outcome = match is_naive {
            true => world.race(*operation, NAIVE_TRIES, Duration::MAX, true),
            false => world.race(*operation, tries, Duration::from_secs(seconds), false),
        };
        let Outcome { tries, escapes, runs, seconds } = &outcome;
        println!("| {name} | {tries} | {} | {runs} | {seconds:.0} |", escapes.len());
        is_bad |= escapes.is_empty() == *is_naive;
        if !is_naive {
            escapes.iter().take(5).for_each(|escape| eprintln!("ESCAPE in {name}: {escape}"));
        }
    }
    ExitCode::from(u8::from(is_bad))
}

type Operation = fn(&World) -> Result<Box<dyn FnMut() -> Round + '_>>;

/// What one run did: how many paths it worked on, and what it let escape as far as it knows itself.
struct Round {
    tries: u64,
    escapes: u64,
}

const OPERATIONS: &[(&str, Operation, bool)] = &[
    ("naive-read", naive_read, true),
    ("naive-write", naive_write, true),
    ("add", add, false),
    ("restore", restore_all, false),
    ("temp", temporary, false),
];

struct Outcome {
    tries: u64,
    escapes: Vec<String>,
    runs: u64,
    seconds: f64,
}

/// A work tree with a directory of the user's, a repository apart, and what is outside.
struct World {
    top: PathBuf,
    repo: Repo,
    /// The tree of the commit that was made before anybody swapped anything.
    tree: git_devops::git::Oid,
}

impl World {
    fn new(top: &Path) -> Self {
        let (victim, mallory) = (top.join("victim"), top.join("tree/mallory"));
        for dir in [&victim.join("dir/sub"), &mallory, &top.join("trash")] {
            fs::create_dir_all(dir).unwrap();
        }
        write(&victim.join("secret"), SECRET, 0o600, (0, 0));
        xattr(&victim.join("secret"), "user.secret", SECRET_XATTR);
        write(&victim.join("linked"), SAME, 0o600, (0, 0));
        xattr(&victim.join("linked"), "user.linked", LINKED_XATTR);
        node(&victim.join("fifo"), 0o600);
        symlink("nowhere", victim.join("symlink")).unwrap();
        for name in ["dir/one", "dir/two", "dir/sub/three"] {
            write(&victim.join(name), SECRET, 0o600, (0, 0));
        }
        for (name, path) in pairs(&mallory) {
            match name {
                "dir" => {
                    fs::create_dir_all(path.join("sub")).unwrap();
                    for name in ["one", "two", "sub/three"] {
                        write(&path.join(name), SAME, 0o666, (MALLORY, MALLORY));
                    }
                    give(&path.join("sub"));
                }
                "node" => node(&path, 0o666),
                "link" => symlink("elsewhere", &path).unwrap(),
                _ => write(&path, SAME, 0o666, (MALLORY, MALLORY)),
            }
            give(&path);
        }
        give(&mallory);
        let places = Places::apart(&top.join("repo"), &top.join("tree"));
        Repo::init(&places, "main").unwrap();
        let repo = Repo::open(places).unwrap();
        let info = CommitInfo {
            identity: Identity { name: "race".into(), email: "race@localhost".into() },
            time: 1_700_000_000,
            offset: 0,
            message: "before".into(),
        };
        record(&repo, &options(), Some(&info), &Progress::default()).unwrap();
        let tree = repo.tree_of("HEAD").unwrap();
        Self { top: top.to_owned(), repo, tree }
    }

    fn mallory(&self) -> PathBuf {
        self.top.join("tree/mallory")
    }

    /// Runs `operation` until it has worked on `tries` paths, while the user swaps, and looks after each run whether anything escaped.
    fn race(&self, operation: Operation, tries: u64, time: Duration, is_naive: bool) -> Outcome {
        self.lay_baits();
        let mut before = self.victim();
        let mut swapper = Swapper::start(&self.top, &self.mallory());
        let beat = Watchdog::start();
        let started = Instant::now();
        let mut outcome = Outcome { tries: 0, escapes: Vec::new(), runs: 0, seconds: 0.0 };
        {
            let mut run = operation(self).unwrap();
            while outcome.tries < tries && started.elapsed() < time && !(is_naive && outcome.escapes.len() >= NAIVE_ESCAPES) {
                let Round { tries: done, escapes } = run();
                outcome.tries += done;
                outcome.runs += 1;
                (0..escapes).for_each(|_| outcome.escapes.push("content from outside was read".into()));
                let now = self.victim();
                if now != before {
                    let what = now.iter().zip(&before).find(|(a, b)| a != b);
                    outcome.escapes.push(format!("outside: {:?}", what.unwrap_or((&now[0], &before[0]))));
                    if !is_naive {
                        break; // what comes after is no news
                    }
                    self.heal();
                    before = self.victim();
                }
                self.lay_baits();
                beat.0.store(0, Ordering::Relaxed);
            }
            assert!(swapper.is_alive(), "the user who swaps must not have ended");
        }
        drop((swapper, beat)); // looking for leaks may take long, and is ours
        if !is_naive {
            outcome.escapes.extend(self.leaked());
        }
        outcome.seconds = started.elapsed().as_secs_f64();
        outcome
    }

    /// Puts back what a run replaced: each call takes one name in an open directory and follows nothing, so this cannot escape itself.
    fn lay_baits(&self) {
        let [dir, victim, trash] =
            ["tree/mallory", "victim", "trash"].map(|name| Dir::open(&self.top.join(name)).expect("a directory of ours"));
        let is_bait = |name: &str, bait: Bait| {
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| match (bait, FileType::from_raw_mode(stat.st_mode)) {
                (Bait::Link(_), FileType::Directory) => false,
                (Bait::Link(_), _) => stat.st_nlink > 1,
                (Bait::Symlink(_), kind) => kind == FileType::Symlink,
                (Bait::Fifo, kind) => kind == FileType::Fifo,
            })
        };
        let spare = ["linked", "fifo", "symlink"].map(|target| (format!("bait-{target}"), Bait::Link(target)));
        for (name, bait) in names().into_iter().chain(spare) {
            let other = if name.starts_with("bait") { name.clone() } else { format!("{name}~") };
            if is_bait(&name, bait) || is_bait(&other, bait) {
                continue;
            }
            let _ = rustix::fs::renameat(&dir, &*other, &trash, "thing");
            let _ = match Dir::open(&self.top.join("trash/thing")) {
                Ok(_) => fs::remove_dir_all(self.top.join("trash/thing")),
                Err(_) => fs::remove_file(self.top.join("trash/thing")),
            };
            // The user makes the others.
            if let Bait::Link(target) = bait {
                let _ = rustix::fs::linkat(&victim, target, &dir, &*other, AtFlags::empty());
            }
        }
    }

    /// Describes everything outside that must not change.
    fn victim(&self) -> Vec<String> {
        let victim = self.top.join("victim");
        let mut all = Vec::new();
        for name in ["", "secret", "linked", "fifo", "symlink", "dir", "dir/one", "dir/two", "dir/sub", "dir/sub/three"] {
            let path = victim.join(name);
            let Ok(stat) = path.symlink_metadata() else {
                all.push(format!("{name} is gone"));
                continue;
            };
            let content = if stat.is_file() { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
            let mut names = [0; 256];
            let n_names = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or_default();
            let mtime = (stat.mtime(), stat.mtime_nsec());
            let attributes = String::from_utf8_lossy(&names[..n_names]).into_owned();
            all.push(format!("{name} {:o} {}:{} {mtime:?} {content:?} {attributes:?}", stat.mode(), stat.uid(), stat.gid()));
        }
        all
    }

    /// Makes what a naive program changed what it was, but for the times, so that it can escape again.
    fn heal(&self) {
        let dir = self.top.join("victim/dir");
        for name in ["one", "two", "sub/three"] {
            write(&dir.join(name), SECRET, 0o600, (0, 0));
        }
        for entry in fs::read_dir(&dir).unwrap().flatten().filter(|entry| entry.file_name().as_bytes().starts_with(b"new")) {
            fs::remove_file(entry.path()).unwrap();
        }
    }

    /// Looks for what only root may read in all objects of the repository.
    fn leaked(&self) -> Vec<String> {
        let args = ["cat-file", "--batch-all-objects", "--batch", "--buffer"];
        let objects = self.repo.git.run(&args).unwrap();
        let mut leaks = Vec::new();
        for marker in [SECRET, SECRET_XATTR] {
            if objects.windows(marker.len()).any(|window| window == marker.as_bytes()) {
                leaks.push(format!("'{marker}' is in a commit"));
            }
        }
        let lines = objects.split(|&b| b == b'\n');
        for line in lines.filter(|line| line.windows(LINKED_XATTR.len()).any(|window| window == LINKED_XATTR.as_bytes())) {
            let line = String::from_utf8_lossy(line).into_owned();
            if line.contains(&MALLORY.to_string()) || !line.contains("mode=0600") {
                leaks.push(format!("attributes of one file with the owner of another: '{line}'"));
                break;
            }
        }
        leaks
    }
}

/// The process of the user who swaps; ends when dropped.
struct Swapper(Child);

impl Swapper {
    fn start(top: &Path, dir: &Path) -> Self {
        // A copy, because the user may not be let to where the program lies.
        let program = top.join("swapper");
        fs::copy("/proc/self/exe", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&program).arg("swap").arg(dir).uid(MALLORY).gid(MALLORY).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && !dir.join("ready").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// Ends the process when a run hangs.
struct Watchdog(Arc<AtomicU64>, Arc<AtomicBool>);

impl Watchdog {
    fn start() -> Self {
        let (ticks, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ticks_too, is_over_too) = (ticks.clone(), is_over.clone());
        std::thread::spawn(move || {
            while !is_over_too.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                if ticks_too.fetch_add(1, Ordering::Relaxed) > HANG.as_millis() as u64 / 100 {
                    eprintln!("HANG: a run did not end within {HANG:?}");
                    std::process::exit(1);
                }
            }
        });
        Self(ticks, is_over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

fn options() -> ScanOptions {
    let excludes = Excludes::new(ExcludeOptions::default(), Path::new("/nonexistent")).unwrap();
    ScanOptions { scope: Scope::Paths(vec![Vec::new()]), excludes, one_file_system: false, by_reference: false }
}

/// Stores everything anew, as the first `add` does, into one pack.
fn add(world: &World) -> Result<Box<dyn FnMut() -> Round + '_>> {
    let mut pack = Some(PackWriter::new(&world.repo.places.git_dir, &world.repo.objects)?);
    let (index, options) = (Index::default(), options());
    let mut n_runs = 0;
    Ok(Box::new(move || {
        let has_failed = AtomicBool::new(false);
        let progress = Progress::default();
        let writer = pack.get_or_insert_with(|| PackWriter::new(&world.repo.places.git_dir, &world.repo.objects).unwrap());
        let found =
            scan(&world.repo, &index, &options, Sink::Preview { pack: writer, has_failed: &has_failed }, &progress).unwrap();
        n_runs += 1;
        if n_runs % 500 == 0 || found.n_seen == 0 {
            pack.take().unwrap().finish().unwrap().map_or(Ok(()), git_devops::git::Kept::release).unwrap();
        }
        Round { tries: found.n_seen + progress.take_warnings().len() as u64, escapes: 0 }
    }))
}

/// Restores the commit onto what the user makes of the work tree.
fn restore_all(world: &World) -> Result<Box<dyn FnMut() -> Round + '_>> {
    let target = Dir::open(&world.top.join("tree"))?;
    Ok(Box::new(move || {
        let progress = Progress::default();
        let restored = restore(&world.repo, world.tree, Some(&target), &RestoreOptions::default(), &progress).unwrap();
        Round { tries: restored.n_seen, escapes: 0 }
    }))
}

/// Makes temporary files in a directory that is swapped, and gives them a name that is swapped.
fn temporary(world: &World) -> Result<Box<dyn FnMut() -> Round + '_>> {
    let root = Dir::open(&world.top.join("tree"))?;
    Ok(Box::new(move || {
        let mut tries = 0;
        for (name, _) in names().into_iter().filter(|(name, _)| name.starts_with("dir")) {
            tries += 1;
            let Ok(dir) = root.open_path(format!("mallory/{name}").as_bytes()) else { continue };
            let Ok((temp, mut file)) = dir.create_temp() else { continue };
            let _ = file.write_all(SAME.as_bytes());
            let _ = dir.rename(&temp, b"one");
            let _ = dir.create_temp_node(FileKind::Fifo, (0, 0)).and_then(|temp| dir.remove_file(&temp));
        }
        for (name, _) in names().into_iter().filter(|(name, _)| name.starts_with("file") || name.starts_with("via")) {
            tries += 1;
            let Ok(dir) = root.open_path(b"mallory") else { continue };
            let Ok((temp, mut file)) = dir.create_temp() else { continue };
            let _ = file.write_all(SAME.as_bytes());
            let _ = dir.rename(&temp, name.as_bytes());
            let _ = dir.remove_file(&temp);
        }
        Round { tries, escapes: 0 }
    }))
}

/// What a careless program does to read: look, then open by path.
fn naive_read(world: &World) -> Result<Box<dyn FnMut() -> Round + '_>> {
    let (mallory, tree) = (world.mallory(), world.top.join("tree").canonicalize()?);
    Ok(Box::new(move || {
        let mut round = Round { tries: 0, escapes: 0 };
        for (name, _) in names().into_iter().filter(|(name, _)| name.starts_with("via")) {
            let path = mallory.join(name);
            let is_file = path.symlink_metadata().is_ok_and(|stat| stat.is_file());
            let is_inside = path.canonicalize().is_ok_and(|real| real.starts_with(&tree));
            for is_good in [is_file, is_inside] {
                round.tries += 1;
                let options = fs::File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).to_owned();
                let mut content = String::new();
                let read = is_good && options.open(&path).is_ok_and(|mut file| file.read_to_string(&mut content).is_ok());
                round.escapes += u64::from(read && content == SECRET);
            }
        }
        round
    }))
}

/// What a careless program does to write: look whether the directory is one, then make a file in it by path.
fn naive_write(world: &World) -> Result<Box<dyn FnMut() -> Round + '_>> {
    let mallory = world.mallory();
    Ok(Box::new(move || {
        let mut tries = 0;
        for (name, _) in names().into_iter().filter(|(name, _)| name.starts_with("dir")) {
            tries += 1;
            let path = mallory.join(name);
            if path.symlink_metadata().is_ok_and(|stat| stat.is_dir()) {
                let _ = fs::write(path.join("new"), SAME);
            }
        }
        Round { tries, escapes: 0 }
    }))
}

/// Swaps names in `dir` until killed: the part of the user without rights.
fn swap_for_ever(dir: &Path) -> ! {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    let exchange = |a: &str, b: &str| rustix::fs::renameat_with(&dir, a, &dir, b, RenameFlags::EXCHANGE);
    let names: Vec<(String, String, Bait)> =
        names().into_iter().map(|(name, bait)| (name.clone(), format!("{name}~"), bait)).collect();
    let baits = ["bait-linked", "bait-fifo", "bait-symlink"];
    let mut n_rounds = 0_u64;
    loop {
        for (a, b, bait) in &names {
            if exchange(a, b).is_err() {
                let _ = match bait {
                    Bait::Symlink(target) => rustix::fs::symlinkat(*target, &dir, &**b),
                    Bait::Fifo => rustix::fs::mknodat(&dir, &**b, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0),
                    Bait::Link(_) => Ok(()), // root lays these
                };
            }
        }
        // What has a wrong mode is to be put right, perhaps by its name.
        for (a, ..) in names.iter().filter(|(.., bait)| n_rounds.is_multiple_of(8) && matches!(bait, Bait::Link(_))) {
            let _ = rustix::fs::chmodat(&dir, &**a, Mode::from_raw_mode(0o640), AtFlags::empty());
        }
        // Whoever makes temporary files finds something else under their names.
        if n_rounds.is_multiple_of(4) {
            let _ = rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0));
            let mut buffer = Vec::with_capacity(16 * 1024);
            let mut raw = rustix::fs::RawDir::new(&dir, buffer.spare_capacity_mut());
            while let Some(Ok(entry)) = raw.next() {
                let name = entry.file_name().to_string_lossy();
                if name.starts_with(".gdo-tmp-") {
                    let _ = exchange(&name, baits[(n_rounds / 4 % 3) as usize]);
                }
            }
        }
        if n_rounds == 0 {
            let _ = rustix::fs::openat(&dir, "ready", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
        }
        n_rounds += 1;
    }
}

fn names() -> Vec<(String, Bait)> {
    PAIRS.iter().flat_map(|(name, bait)| (0..COPIES).map(move |n| (format!("{name}{n}"), *bait))).collect()
}

fn pairs(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    PAIRS.iter().flat_map(|(name, _)| (0..COPIES).map(move |n| (*name, dir.join(format!("{name}{n}"))))).collect()
}

fn write(path: &Path, content: &str, mode: u32, (uid, gid): (u32, u32)) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(uid), Some(gid)).unwrap();
}

fn xattr(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

fn node(path: &Path, mode: u32) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(mode), 0).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(MALLORY), Some(MALLORY)).unwrap();
}
