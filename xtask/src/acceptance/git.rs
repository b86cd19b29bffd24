//! The repository is an ordinary one: whatever stock git does to it is safe.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::command::{Context, Failure, Result, run, succeed};
use crate::compare::{Options, must_be_equal};
use crate::{ensure, fixtures};

use super::{Place, World, copy, fsck};

/// What people do to make a repository smaller.
const HOUSEKEEPING: &[&[&str]] = &[&["gc", "--quiet", "--prune=now"], &["repack", "-a", "-d", "-q"], &["prune", "--expire=now"]];

pub fn clone(world: &World) -> Result<String> {
    let place = world.place("clone")?;
    fixtures::debian_root(&place.work)?;
    place.init()?;
    place.snapshot("a whole Debian")?;
    cloned(&place, true)?;

    let place = world.place("clone-oddities")?;
    fixtures::oddities(&place.work)?;
    place.init()?;
    place.snapshot("every oddity")?;
    // Checked out it would need a path that is longer than the kernel takes.
    cloned(&place, false)?;
    Ok(String::new())
}

fn cloned(place: &Place, with_checkout: bool) -> Result {
    fsck(place.git(&["fsck", "--strict", "--full"]))?;
    let clone = place.dir.join("clone");
    let mut command = Command::new("git");
    place.surroundings(&mut command);
    command.args(["clone", "--quiet", "--no-local"]).args((!with_checkout).then_some("--no-checkout"));
    succeed(command.arg(&place.git_dir).arg(&clone))?;
    let in_clone = |args: &[&str]| {
        let mut git = Command::new("git");
        place.surroundings(&mut git);
        git.arg("-C").arg(&clone).args(args);
        git
    };
    fsck(in_clone(&["fsck", "--strict", "--full"]))?;
    let head = succeed(&mut in_clone(&["rev-parse", "HEAD"]))?.text();
    ensure!(head == place.head()?, "the clone's HEAD is {head}, the repository's {}", place.head()?);
    if with_checkout {
        let status = succeed(&mut in_clone(&["status", "--porcelain"]))?;
        ensure!(status.stdout.is_empty(), "a fresh clone is not clean:\n{}", status.tail(15));
    }
    Ok(())
}

pub fn housekeeping(world: &World) -> Result<String> {
    let place = world.place("housekeeping")?;
    fixtures::oddities(&place.work)?;
    fixtures::many_files(&place.work, 2000)?;
    place.init()?;
    place.snapshot("first")?;
    std::fs::write(place.work.join("words/dos.txt"), "changed\r\n")?;
    fixtures::edit_4k(&place.work.join("sizes/4194304-bytes"), 4096)?;
    place.snapshot("second")?;
    for args in HOUSEKEEPING {
        succeed(&mut place.git(args))?;
        place.checks_clean().context(|| format!("after 'git {}'", args.join(" ")))?;
    }
    place.restores_exactly().context(|| "after stock git's housekeeping")?;
    succeed(&mut place.gdo(&["gc"]))?;
    place.checks_clean().context(|| "after 'gdo gc'")?;
    place.restores_exactly().context(|| "after 'gdo gc'")?;
    Ok(String::new())
}

pub fn housekeeping_meanwhile(world: &World) -> Result<String> {
    let place = world.place("housekeeping-meanwhile")?;
    let first = place.dir.join("first");
    fixtures::many_files(&place.work, 3000)?;
    fixtures::media(&place.work, 20 << 20)?;
    place.init()?;
    place.snapshot("first")?;
    copy(&place.work, &first)?;

    let done = AtomicBool::new(false);
    let (snapshots, rounds) = std::thread::scope(|scope| {
        let loop_of_git = scope.spawn(|| keep_house(&place, &done));
        let snapshots = change_and_store(&place, 8);
        done.store(true, Ordering::Relaxed);
        (snapshots, loop_of_git.join().expect("BUG: the loop of git panicked"))
    });
    snapshots?;
    let rounds = rounds?;
    place.checks_clean()?;
    place.restores_exactly()?;
    let old = place.restored("old", &["--source", "HEAD~8"])?;
    must_be_equal(&first, &old, &Options::default()).context(|| "the oldest commit is not what it was")?;
    Ok(format!("{rounds} rounds of git"))
}

/// Does stock git's housekeeping until told to stop, and returns how often.
fn keep_house(place: &Place, done: &AtomicBool) -> Result<u32> {
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        for args in HOUSEKEEPING {
            succeed(&mut place.git(args))?;
        }
        rounds += 1;
    }
    Ok(rounds)
}

fn change_and_store(place: &Place, n_times: usize) -> Result {
    for round in 0..n_times {
        let added = place.work.join(format!("round-{round}"));
        std::fs::create_dir(&added)?;
        fixtures::many_files(&added, 1500)?;
        std::fs::write(added.join("only-here"), format!("{round}\n"))?;
        fixtures::edit_4k(&place.work.join("clip-000.bin"), round as u64 * 1_000_000)?;
        place.snapshot(&format!("round {round}"))?;
    }
    Ok(())
}

pub fn merge_metadata(world: &World) -> Result<String> {
    let place = world.place("merge-metadata")?;
    let dir = place.work.join("etc");
    std::fs::create_dir(&dir)?;
    for name in ["a", "b", "c", "d"] {
        std::fs::write(dir.join(name), format!("content of {name}\n"))?;
    }
    place.init()?;
    place.snapshot("base")?;
    let (main, other) = two_branches(
        &place,
        || sh(&dir, "chmod 0600 a; setfattr -n user.ours -v 1 d"),
        || sh(&dir, "chmod 0644 a; setfattr -x user.ours d; chmod 4750 b; chown 1:1 c"),
    )?;

    let merged = succeed(&mut place.gdo(&["git", "merge-tree", "--write-tree", &main, &other]))?.text();
    let tree = merged.lines().next().unwrap_or_default();
    let mut commit = place.git(&["commit-tree", "-m", "merged", "-p", &main, "-p", &other, tree]);
    for role in ["AUTHOR", "COMMITTER"] {
        commit.env(format!("GIT_{role}_NAME"), "Merger").env(format!("GIT_{role}_EMAIL"), "merger@example.org");
    }
    let commit = succeed(&mut commit)?.text();
    let restored = place.restored("restored", &["--source", &commit])?;
    // The work tree is made what the merge should be.
    sh(&dir, "chmod 0600 a; setfattr -n user.ours -v 1 d")?;
    must_be_equal(&place.work, &restored, &Options::default()).context(|| "the merge lost a change")?;
    Ok(String::new())
}

pub fn merge_large(world: &World) -> Result<String> {
    let place = world.place("merge-large")?;
    let disk = place.work.join("disk.img");
    fixtures::disk_image(&disk, 4 << 20, 4 << 20)?;
    place.init()?;
    place.snapshot("base")?;
    // Far apart, where a merge of texts would see no conflict.
    let (main, other) = two_branches(&place, || fixtures::edit_4k(&disk, 0), || fixtures::edit_4k(&disk, 3 << 20))?;
    let merge = run(&mut place.gdo(&["git", "merge-tree", "--write-tree", &main, &other]))?.exits(1)?;
    ensure!(merge.said().contains("CONFLICT") && merge.said().contains("disk.img"), "no conflict is named:\n{}", merge.tail(15));
    Ok(String::new())
}

/// Makes two commits on the same parent, each after a change, and returns the two branches' names.
fn two_branches(place: &Place, ours: impl Fn() -> Result, theirs: impl Fn() -> Result) -> Result<(String, String)> {
    let main = succeed(&mut place.git(&["symbolic-ref", "--short", "HEAD"]))?.text();
    succeed(&mut place.git(&["branch", "other"]))?;
    ours()?;
    place.snapshot("ours")?;
    succeed(&mut place.git(&["symbolic-ref", "HEAD", "refs/heads/other"]))?;
    theirs()?;
    place.snapshot("theirs")?;
    let base = succeed(&mut place.git(&["merge-base", "--all", &main, "other"]))?.text();
    let parent = succeed(&mut place.git(&["rev-parse", "other^"]))?.text();
    if base != parent {
        return Err(Failure("a snapshot did not stand on the branch that HEAD names".into()));
    }
    Ok((main, "other".into()))
}

fn sh(dir: &Path, script: &str) -> Result {
    succeed(Command::new("sh").args(["-ec", script]).current_dir(dir)).map(drop)
}
