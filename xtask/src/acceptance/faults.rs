//! What goes wrong is named, and the rest is stored; what cannot be finished leaves all as it was.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::command::{Context, Outcome, Result, run, succeed, wrapped};
use crate::compare::{Difference, Options, compare, must_be_equal, must_be_none};
use crate::{ensure, fixtures};

use super::{Place, World, fsck, must_name, tool};

/// Exit code for: done, but for what was named.
const PARTIAL: i32 = 3;
/// Exit code for: no space left.
const NO_SPACE: i32 = 4;

pub fn unreadable(world: &World) -> Result<String> {
    // Another user must reach all of it, wherever the checkout is.
    let dir = std::env::temp_dir().join(format!("gdo-unreadable-{}", std::process::id()));
    let mut place = Place::new(&world.gdo, &dir)?;
    let result = as_another_user(&mut place);
    fixtures::remove(&dir)?;
    result.map(|()| String::new())
}

fn as_another_user(place: &mut Place) -> Result {
    fixtures::many_files(&place.work, 200)?;
    let program = place.dir.join("gdo");
    std::fs::copy(&place.gdo, &program)?;
    place.gdo = program;
    tool(&["chown", "-R", "1000:1000", path(&place.dir)])?;
    let locked = ["locked-file", "locked-dir", "locked-large"];
    std::fs::write(place.work.join("locked-file"), "secret\n")?;
    std::fs::create_dir(place.work.join("locked-dir"))?;
    std::fs::write(place.work.join("locked-dir/inside"), "secret\n")?;
    std::fs::write(place.work.join("locked-large"), fixtures::Seeded::new(1).bytes(300_000))?;
    for name in locked {
        tool(&["chmod", "0000", path(&place.work.join(name))])?;
    }
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let as_user = |args: &[&str]| wrapped(&place.gdo(args), Path::new("setpriv"), &user);
    succeed(&mut as_user(&["init"]))?;
    let snapshot = run(&mut as_user(&["snapshot", "-m", "partial", "."]))?.exits(PARTIAL)?;
    for name in locked {
        must_name(&snapshot, name)?;
    }
    let target = place.dir.join("restored");
    std::fs::create_dir(&target)?;
    tool(&["chown", "1000:1000", path(&target)])?;
    succeed(&mut as_user(&["restore", "--target", path(&target)]))?;
    must_be_equal_but(&place.work, &target, &locked)
}

pub fn vanishing(world: &World) -> Result<String> {
    for error in ["ENOENT", "EIO", "EACCES"] {
        let place = world.place(&format!("vanishing-{error}"))?;
        fixtures::many_files(&place.work, 500)?;
        std::fs::create_dir(place.work.join("dir"))?;
        std::fs::write(place.work.join("dir/small-victim"), "gone\n")?;
        std::fs::write(place.work.join("dir/large-victim"), fixtures::Seeded::new(1).bytes(2 << 20))?;
        place.init()?;
        let snapshot = with_injected_error(&place, error, &["small-victim", "large-victim"])?.exits(PARTIAL)?;
        must_name(&snapshot, "dir/small-victim")?;
        must_name(&snapshot, "dir/large-victim")?;
        let restored = place.restored("restored", &[])?;
        must_be_equal_but(&place.work, &restored, &["dir/small-victim", "dir/large-victim"])
            .context(|| format!("after {error}"))?;
        place.checks_clean()?;
        // Undisturbed, the next one completes what is missing.
        place.snapshot("complete")?;
        place.restores_exactly()?;
    }
    Ok(String::new())
}

/// Makes a snapshot in which opening any of the names fails as if the disk or another program were to blame.
fn with_injected_error(place: &Place, error: &str, names: &[&str]) -> Result<Outcome> {
    let inject = format!("inject=open,openat,openat2:error={error}");
    let log = place.dir.join("strace.log");
    let mut options = vec!["-f", "-qq", "-o", path(&log), "-e", "trace=open,openat,openat2", "-e", &inject];
    names.iter().for_each(|name| options.extend(["-P", name]));
    let outcome = run(&mut wrapped(&place.gdo(&["snapshot", "-m", "disturbed", "."]), Path::new("strace"), &options))?;
    let log = std::fs::read_to_string(&log)?;
    ensure!(log.contains("INJECTED"), "no error was injected, so the test shows nothing:\n{log}");
    Ok(outcome)
}

pub fn changing(world: &World) -> Result<String> {
    let place = world.place("changing")?;
    fixtures::many_files(&place.work, 500)?;
    let disk = place.work.join("changing.img");
    fixtures::disk_image(&disk, 256 << 20, 256 << 20)?;
    place.init()?;
    let done = AtomicBool::new(false);
    let snapshot = std::thread::scope(|scope| {
        scope.spawn(|| keep_writing(&disk, &done));
        let outcome = run(&mut place.gdo(&["snapshot", "-m", "restless", "."]));
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    let snapshot = snapshot.exits(PARTIAL)?;
    must_name(&snapshot, "changing.img")?;
    let restored = place.restored("restored", &[])?;
    must_be_equal_but(&place.work, &restored, &["changing.img"])?;
    place.checks_clean()?;
    place.snapshot("at rest")?;
    place.restores_exactly()?;
    Ok(String::new())
}

fn keep_writing(path: &Path, done: &AtomicBool) {
    let file = File::options().write(true).open(path).expect("BUG: the file was just made");
    let mut seeded = fixtures::Seeded::new(30);
    while !done.load(Ordering::Relaxed) {
        let at = seeded.next() % (255 << 20);
        file.write_all_at(&seeded.bytes(4096), at).expect("BUG: the file can be written");
    }
}

pub fn flickering(world: &World) -> Result<String> {
    let place = world.place("flickering")?;
    fixtures::many_files(&place.work, 3000)?;
    let restless = place.work.join("restless");
    std::fs::create_dir(&restless)?;
    std::fs::write(restless.join("stays"), "stays\n")?;
    place.init()?;
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        scope.spawn(|| keep_coming_and_going(&restless, &done));
        let rounds = snapshots_meanwhile(&place, 10);
        done.store(true, Ordering::Relaxed);
        rounds
    })?;
    let restored = place.restored("restored", &[])?;
    let left: Vec<Difference> = differences_outside(&place.work, &restored, &["restless"])?;
    must_be_none(&left)?;
    ensure!(restored.join("restless/stays").exists(), "a file that was there all the time was not stored");
    place.checks_clean()?;
    let n_partial = rounds.iter().filter(|code| **code == PARTIAL).count();
    Ok(format!("{n_partial} of {} snapshots met a file that vanished", rounds.len()))
}

fn snapshots_meanwhile(place: &Place, n: usize) -> Result<Vec<i32>> {
    let mut codes = Vec::new();
    for _ in 0..n {
        let outcome = run(&mut place.gdo(&["snapshot", "-m", "restless", "."]))?;
        ensure!(
            matches!(outcome.code, 0 | PARTIAL),
            "exited with {}, expected 0 or {PARTIAL}:\n{}",
            outcome.code,
            outcome.tail(15)
        );
        if outcome.code == PARTIAL {
            must_name(&outcome, "restless")?;
        }
        codes.push(outcome.code);
    }
    Ok(codes)
}

fn keep_coming_and_going(dir: &Path, done: &AtomicBool) {
    let name = |at: u64| dir.join(format!("flicker-{at}"));
    for at in 0.. {
        // Removed by someone else is impossible here; a full disk would show in the snapshot.
        let _ = std::fs::write(name(at), fixtures::Seeded::new(at).bytes(if at % 50 == 0 { 200_000 } else { 100 }));
        if at >= 300 {
            let _ = std::fs::remove_file(name(at - 300));
        }
        if done.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Fails on differences outside the named entries (and the directories that hold them).
fn must_be_equal_but(first: &Path, second: &Path, names: &[&str]) -> Result {
    must_be_none(&differences_outside(first, second, names)?)
}

fn differences_outside(first: &Path, second: &Path, names: &[&str]) -> Result<Vec<Difference>> {
    let is_inside = |found: &Difference| {
        names.iter().any(|name| found.path == name.as_bytes() || found.path.starts_with(format!("{name}/").as_bytes()))
    };
    Ok(compare(first, second, &Options::default())?.into_iter().filter(|found| !is_inside(found)).collect())
}

pub fn full_ext4(world: &World) -> Result<String> {
    let place = world.place("full-ext4")?;
    let image = place.dir.join("disk.ext4");
    File::create(&image)?.set_len(24 << 20)?;
    tool(&["mkfs.ext4", "-q", "-m", "0", path(&image)])?;
    aborts_cleanly(place, &["-o", "loop", path(&image)])
}

pub fn full_tmpfs(world: &World) -> Result<String> {
    let place = world.place("full-tmpfs")?;
    aborts_cleanly(place, &["-t", "tmpfs", "-o", "size=16m", "none"])
}

/// Fills a small file system, which holds repository and store, from a tree that lies elsewhere.
fn aborts_cleanly(mut place: Place, mount: &[&str]) -> Result<String> {
    let small = place.dir.join("small");
    std::fs::create_dir(&small)?;
    let _mounted = Mounted::new(mount, &small)?;
    place.git_dir = small.join("repo.git");
    place.store = small.join("store");
    fixtures::many_files(&place.work, 300)?;
    place.init()?;
    place.snapshot("fits")?;
    let (head, free) = (place.head()?, free_bytes(&small)?);
    let good = place.restored("good", &[])?;

    std::fs::create_dir(place.work.join("much"))?;
    fixtures::media(&place.work.join("much"), 64 << 20)?;
    for _ in 0..2 {
        let full = run(&mut place.gdo(&["snapshot", "-m", "does not fit", "."]))?.exits(NO_SPACE)?;
        must_name(&full, "clip-000.bin").or_else(|_| must_name(&full, path(&small)))?;
        ensure!(place.head()? == head, "HEAD moved although the disk was full");
        fsck(place.git(&["fsck", "--strict", "--full"])).context(|| "after the disk was full")?;
        succeed(&mut place.gdo(&["check", "--data"])).context(|| "after the disk was full")?;
    }
    let lost = free.saturating_sub(free_bytes(&small)?);
    ensure!(lost <= 1 << 20, "{} KiB that are used by nothing stayed on the full disk", lost >> 10);
    let again = place.restored("again", &[])?;
    must_be_equal(&good, &again, &Options::default()).context(|| "what was stored before is not what it was")?;

    fixtures::remove(&place.work.join("much"))?;
    std::fs::write(place.work.join("after"), "there is space again\n")?;
    place.snapshot("fits again")?;
    ensure!(place.head()? != head, "no commit was made after there was space again");
    place.restores_exactly()?;
    place.checks_clean()?;
    Ok(format!("{} KiB left behind by two aborted snapshots", lost >> 10))
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bfree * stat.f_frsize)
}

/// A file system that is unmounted when the test is over.
struct Mounted(PathBuf);

impl Mounted {
    fn new(options: &[&str], at: &Path) -> Result<Mounted> {
        tool(&[&["mount"], options, &[path(at)]].concat())?;
        Ok(Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("BUG: scratch directories have plain names")
}
