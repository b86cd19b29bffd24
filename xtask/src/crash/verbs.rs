//! The verbs that are swept: what is there before, and the command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Context, Outcome, Result, run, succeed};
use crate::{ensure, fixtures};

/// A verb in one situation.
pub struct Verb {
    /// What it is called in the table.
    pub name: &'static str,
    /// The words of the command line.
    pub args: &'static [&'static str],
    /// Makes what is there before.
    pub prepare: fn(&Place) -> Result,
}

/// All of them.
pub const VERBS: &[Verb] = &[
    Verb { name: "init", args: &["init"], prepare: tree },
    Verb { name: "add", args: &["add", "."], prepare: empty_repository },
    Verb { name: "commit", args: &["commit", "-m", "staged"], prepare: staged },
    Verb { name: "snapshot-first", args: &["snapshot", "-m", "first", "."], prepare: empty_repository },
    Verb { name: "snapshot-changed", args: &["snapshot", "-m", "second", "."], prepare: changed },
    Verb { name: "snapshot-large", args: &["snapshot", "-m", "large", "."], prepare: large },
    Verb { name: "snapshot-revived", args: &["snapshot", "-m", "third again", "."], prepare: revived },
    Verb { name: "restore", args: &["restore", "--source", "HEAD"], prepare: changed },
    Verb { name: "restore-back", args: &["restore", "--source", "HEAD~1"], prepare: two_commits },
    Verb { name: "restore-over", args: &["restore", "--source", "HEAD~1"], prepare: other_types },
    Verb { name: "rm", args: &["rm", "dir", "large", "hard2"], prepare: one_commit },
    Verb { name: "rm-cached", args: &["rm", "--cached", "dir", "large", "hard2"], prepare: one_commit },
    Verb { name: "attributes", args: &["attributes", "*.img", "chunker=fixed"], prepare: one_commit },
    Verb { name: "check-repair", args: &["check", "--data", "--repair"], prepare: rotted_garbage },
    Verb { name: "gc", args: &["gc", "--prune", "now"], prepare: garbage },
    Verb { name: "gc-again", args: &["gc", "--prune", "now"], prepare: marked_garbage },
];

/// The places of an instance.
pub struct Place {
    /// The program.
    pub gdo: PathBuf,
    /// The directory that has work tree and repository.
    pub top: PathBuf,
    /// The chunk store.
    pub store: PathBuf,
    /// The setting `devops.threads`.
    pub n_threads: usize,
}

impl Place {
    /// Returns the work tree.
    pub fn work(&self) -> PathBuf {
        self.top.join("work")
    }

    /// Returns the repository.
    pub fn git_dir(&self) -> PathBuf {
        self.top.join("repo.git")
    }

    /// Returns the program with the places named and an environment of its own.
    pub fn gdo(&self, args: &[&str]) -> Command {
        let mut gdo = Command::new(&self.gdo);
        self.surroundings(&mut gdo);
        gdo.arg("--git-dir").arg(self.git_dir()).arg("--work-tree").arg(self.work()).arg("--store").arg(&self.store);
        gdo.args(args);
        gdo
    }

    /// Returns stock git on the repository.
    pub fn git(&self, args: &[&str]) -> Command {
        let mut git = Command::new("git");
        self.surroundings(&mut git);
        git.env("GIT_OPTIONAL_LOCKS", "0").arg("--git-dir").arg(self.git_dir()).args(args);
        git
    }

    fn surroundings(&self, command: &mut Command) {
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command.env("HOME", "/nonexistent").env("USER", "root").env("TZ", "UTC").env("GIT_DEVOPS_TIME", "1700000000");
        command.current_dir(self.work());
    }

    /// Runs the program, which must succeed.
    pub fn does(&self, args: &[&str]) -> Result<Outcome> {
        succeed(&mut self.gdo(args))
    }
}

fn sh(dir: &Path, script: &str) -> Result {
    succeed(Command::new("sh").args(["-ec", script]).current_dir(dir)).map(drop)
}

/// One of each that matters, and few of it: the number of states grows with the number of entries.
fn tree(place: &Place) -> Result {
    std::fs::create_dir(place.work())?;
    sh(
        &place.work(),
        "mkdir -p dir/sub empty; chmod 2750 empty; chown 1000:1000 dir/sub
        echo plain >plain; echo other >dir/other; chown 1000:33 dir/other; chmod 0640 dir/other
        echo program >dir/sub/program; chmod 4755 dir/sub/program
        setfattr -n user.colour -v green plain; setfattr -n trusted.t -v 1 dir
        ln -s plain link; ln -s /nowhere dir/link; mkfifo fifo; mknod dev c 1 3
        echo twice >hard1; ln hard1 hard2; truncate -s 1M sparse; printf data | dd of=sparse bs=4096 seek=100 conv=notrunc status=none
        echo fixed >fixed; chattr +d plain; : >nothing",
    )?;
    std::fs::write(place.work().join("large"), fixtures::Seeded::new(1).bytes(200_000))?;
    std::fs::write(place.work().join("dir/large"), fixtures::Seeded::new(2).text(300_000))?;
    sh(&place.work(), "find . -depth -exec touch -h -d '2020-02-02 02:02:02.123456789' '{}' ';'; chattr +i fixed")
}

fn empty_repository(place: &Place) -> Result {
    tree(place)?;
    place.does(&["init"])?;
    succeed(&mut place.git(&["config", "devops.threads", &place.n_threads.to_string()]))?;
    Ok(())
}

fn staged(place: &Place) -> Result {
    empty_repository(place)?;
    place.does(&["add", "."]).map(drop)
}

fn one_commit(place: &Place) -> Result {
    empty_repository(place)?;
    place.does(&["snapshot", "-m", "first", "."]).map(drop)
}

/// Every way in which an entry can change: content, each kind of metadata, type, and coming and going.
fn changed(place: &Place) -> Result {
    one_commit(place)?;
    sh(
        &place.work(),
        "echo PLAIN >plain; setfattr -n user.colour -v red plain; chmod 0600 dir/other; chown 0:0 dir/other
        rm link; echo 'no link' >link; ln -sfn elsewhere dir/link; rm fifo; echo new >fresh; mkdir dir/new; echo in >dir/new/in
        rm hard2; echo apart >hard2; chattr -i fixed; echo FIXED >fixed; chattr +i fixed; chmod 0700 empty
        rm dir/sub/program; echo 'new program' >dir/sub/program; chmod 0755 dir/sub/program
        printf DATA | dd of=sparse bs=4096 seek=200 conv=notrunc status=none; touch -d '2021-01-01 01:01:01.5' nothing",
    )?;
    fixtures::edit_4k(&place.work().join("large"), 50_000)
}

fn two_commits(place: &Place) -> Result {
    changed(place)?;
    place.does(&["snapshot", "-m", "second", "."]).map(drop)
}

/// Two commits between which nearly every entry changes its type, names of files are joined and parted, and many come.
fn other_types(place: &Place) -> Result {
    std::fs::create_dir(place.work())?;
    sh(
        &place.work(),
        "mkdir -p was-dir/deep was-tree sub; echo one >was-dir/one; echo two >was-dir/deep/two; chmod 2750 was-dir/deep
        echo file >was-file; chmod 0640 was-file; mkfifo was-fifo; ln -s sub was-link; echo in >was-tree/in
        echo joined >j1; ln j1 j2; ln j1 sub/j3; echo apart >a1; echo apart >a2",
    )?;
    std::fs::write(place.work().join("was-dir/large"), fixtures::Seeded::new(5).bytes(200_000))?;
    std::fs::write(place.work().join("l1"), fixtures::Seeded::new(6).bytes(150_000))?;
    sh(&place.work(), "ln l1 l2; find . -depth -exec touch -h -d '2020-02-02 02:02:02.123456789' '{}' ';'")?;
    place.does(&["init"])?;
    succeed(&mut place.git(&["config", "devops.threads", &place.n_threads.to_string()]))?;
    place.does(&["snapshot", "-m", "first", "."])?;
    sh(
        &place.work(),
        "rm -r was-dir was-tree; echo dir >was-dir; ln -s /nowhere was-tree; rm was-file was-fifo was-link
        mkdir -p was-file/deep was-link; echo in >was-file/in; echo in >was-file/deep/in; echo fifo >was-fifo; echo in >was-link/in
        rm j2; echo parted >j2; rm a2; ln a1 a2; rm l2; ln j2 sub/j4
        mkdir -p more/deep/er empty; for n in 1 2 3; do echo $n >more/$n; echo $n >more/deep/er/$n; done; ln more/1 more/deep/1",
    )?;
    std::fs::write(place.work().join("more/large"), fixtures::Seeded::new(7).bytes(200_000))?;
    fixtures::edit_4k(&place.work().join("l1"), 50_000)?;
    place.does(&["snapshot", "-m", "second", "."]).map(drop)
}

fn large(place: &Place) -> Result {
    one_commit(place)?;
    std::fs::write(place.work().join("dir/huge"), fixtures::Seeded::new(3).bytes(3 << 20))?;
    Ok(())
}

/// A commit that nothing leads to any more, with the chunks of its files.
fn garbage(place: &Place) -> Result {
    two_commits(place)?;
    std::fs::write(place.work().join("gone"), fixtures::Seeded::new(4).bytes(1 << 20))?;
    place.does(&["snapshot", "-m", "third", "."])?;
    std::fs::remove_file(place.work().join("gone"))?;
    succeed(&mut place.git(&["update-ref", "--no-deref", "refs/heads/main", "main~1"]))?;
    succeed(&mut place.git(&["reflog", "expire", "--expire=now", "--all"]))?;
    // Nothing else explains where the branch is now.
    place.does(&["check", "--accept"])?;
    place.does(&["rm", "--cached", "gone"]).map(drop)
}

/// The content of a commit that nothing leads to any more is there again: what is stored of it will be used.
fn revived(place: &Place) -> Result {
    garbage(place)?;
    std::fs::write(place.work().join("gone"), fixtures::Seeded::new(4).bytes(1 << 20))?;
    sh(&place.work(), "echo 'one more' >more")
}

fn marked_garbage(place: &Place) -> Result {
    garbage(place)?;
    place.does(&["gc", "--prune", "now"]).map(drop)
}

/// A damaged chunk that nothing refers to, in a pack with sound ones that are needed.
fn rotted_garbage(place: &Place) -> Result {
    two_commits(place)?;
    std::fs::write(place.work().join("gone"), fixtures::Seeded::new(8).bytes(1 << 20))?;
    std::fs::write(place.work().join("stays"), fixtures::Seeded::new(9).bytes(200_000))?;
    place.does(&["snapshot", "-m", "third", "."])?;
    std::fs::remove_file(place.work().join("gone"))?;
    place.does(&["rm", "--cached", "gone"])?;
    succeed(&mut place.git(&["update-ref", "--no-deref", "refs/heads/main", "main~1"]))?;
    place.does(&["commit", "-m", "third again"])?;
    succeed(&mut place.git(&["reflog", "expire", "--expire=now", "--all"]))?;
    succeed(&mut place.git(&["gc", "--quiet", "--prune=now"]))?;
    let listed = succeed(Command::new("find").arg(place.store.join("packs")).args(["-name", "*.pack", "-size", "+1024k"]))?;
    let packs = listed.text();
    ensure!(packs.lines().count() == 1, "the chunks of 'gone' lie in several packs, or in none: {packs}");
    // Whichever of the two files came first, the middle is in the larger one.
    let middle = std::fs::metadata(&packs)?.len() / 2;
    fixtures::edit_4k(Path::new(&packs), middle)
}

/// Removes all garbage, with stock git and with a run of ours: what may go on while another run is frozen.
pub fn collect_garbage(place: &Place) -> Result {
    if !place.store.join("format").exists() || !place.git_dir().join("HEAD").exists() {
        return Ok(());
    }
    // It may find itself locked out; it only has to end.
    run(&mut place.git(&["gc", "--quiet", "--prune=now"]))?;
    // A second repository that shares the store does not need the lock of the first.
    let other = Place { gdo: place.gdo.clone(), top: place.top.join("other"), store: place.store.clone(), n_threads: 1 };
    std::fs::create_dir_all(other.work())?;
    for (who, args) in [(place, &["gc", "--prune", "now"][..]), (&other, &["init"]), (&other, &["gc", "--prune", "now"])] {
        let outcome = run(&mut who.gdo(args))?;
        ensure!([0, LOCKED].contains(&outcome.code), "meanwhile '{}' exits with {}: {}", args[0], outcome.code, outcome.tail(5));
        if outcome.code == LOCKED && args[0] == "init" {
            break;
        }
    }
    Ok(())
}

/// The exit code for: locked by another run.
const LOCKED: i32 = 7;

/// Returns the tree id of the last commit and the number of commits; `None` before the first, and where there is no repository.
pub fn history(place: &Place) -> Result<Option<(String, String)>> {
    let tree = run(&mut place.git(&["rev-parse", "--verify", "--quiet", "HEAD^{tree}"]))?;
    if tree.code != 0 {
        return Ok(None);
    }
    let count = succeed(&mut place.git(&["rev-list", "--count", "HEAD"])).context(|| "cannot count the commits")?;
    Ok(Some((tree.text(), count.text())))
}

/// Returns the entries of the index, as stock git reads them.
pub fn index(place: &Place) -> Result<String> {
    let listed = succeed(&mut place.git(&["ls-files", "--stage"]))?;
    Ok(listed.text())
}
