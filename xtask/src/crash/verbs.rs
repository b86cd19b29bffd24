//! The verbs that are swept: what is there before, and the command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Context, Outcome, Result, run, succeed};
use crate::{ensure, fixtures};

use super::elsewhere::{fetched, more_from_a_holder, nothing_here, over, promised, shared};
use super::host::{Host, Sockets};
use super::replays::{adopted, applied, aside, begun, drifted, failed, halted, interrupted, released};

/// A verb in one situation.
pub struct Verb {
    /// What it is called in the table.
    pub name: &'static str,
    /// The words of the command line.
    pub args: &'static [&'static str],
    /// Makes what is there before.
    pub prepare: fn(&Place) -> Result,
    /// What it brings from another host, if it needs one.
    pub brings: Brings,
}

/// What a verb brings from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brings {
    /// It asks none.
    Nothing,
    /// The branches.
    Branches,
    /// The chunks of the files in its branch, too.
    Chunks,
    /// A repository with all of that, in the work tree.
    Clone,
}

impl Verb {
    const fn local(name: &'static str, args: &'static [&'static str], prepare: fn(&Place) -> Result) -> Verb {
        Verb { name, args, prepare, brings: Brings::Nothing }
    }

    /// Says whether the refs after it are the same whenever it is done.
    pub fn moves_refs(&self) -> bool {
        ["switch", "snap", "ci", "abort"].contains(&self.name)
    }

    /// Says whether there is no repository before.
    pub fn makes_the_repository(&self) -> bool {
        self.name == "init" || self.brings == Brings::Clone
    }
}

/// All of them.
pub const VERBS: &[Verb] = &[
    Verb::local("init", &["init"], tree),
    Verb::local("add", &["add", "."], empty_repository),
    Verb::local("commit", &["commit", "-m", "staged"], staged),
    Verb::local("snapshot-first", &["snapshot", "-m", "first", "."], empty_repository),
    Verb::local("snapshot-changed", &["snapshot", "-m", "second", "."], changed),
    Verb::local("snapshot-large", &["snapshot", "-m", "large", "."], large),
    Verb::local("snapshot-revived", &["snapshot", "-m", "third again", "."], revived),
    Verb::local("restore", &["restore", "--source", "HEAD"], changed),
    Verb::local("restore-back", &["restore", "--source", "HEAD~1"], two_commits),
    Verb::local("restore-over", &["restore", "--source", "HEAD~1"], other_types),
    Verb::local("rm", &["rm", "dir", "large", "hard2"], one_commit),
    Verb::local("rm-cached", &["rm", "--cached", "dir", "large", "hard2"], one_commit),
    Verb::local("attributes", &["attributes", "*.img", "chunker=fixed"], one_commit),
    Verb::local("check-repair", &["check", "--data", "--repair"], rotted_garbage),
    Verb::local("gc", &["gc", "--prune", "now"], garbage),
    Verb::local("gc-again", &["gc", "--prune", "now"], marked_garbage),
    Verb::local("maintain", &["maintain"], compressible),
    Verb::local("maintain-again", &["maintain"], twice_there),
    Verb::local("snapshot-roll-up", &["snapshot", "-m", "one too many", "."], many_packs),
    Verb::local("up", &["up", "--offline", "--to", "o/main"], released),
    Verb::local("rollback", &["rollback", "o/first"], applied),
    Verb::local("rollback-half", &["rollback", "o/first"], halted),
    Verb::local("resume", &["resume"], failed),
    Verb::local("resume-rerun", &["resume", "--rerun"], interrupted),
    Verb::local("resume-done", &["resume", "--done"], interrupted),
    Verb::local("switch", &["switch", "web"], aside),
    Verb::local("snap", &["snap", "-m", "second", "."], changed),
    Verb::local("exec", EXEC, two_commits),
    Verb::local("ci", &["ci"], begun),
    Verb::local("abort", &["abort"], begun),
    Verb::local("converge", &["converge", "--offline", "--to", "o/main"], adopted),
    Verb::local("fix", &["fix", "--all"], drifted),
    Verb { name: "fetch", args: &["fetch"], prepare: more_from_a_holder, brings: Brings::Branches },
    Verb { name: "sync", args: &["sync"], prepare: promised, brings: Brings::Chunks },
    Verb { name: "drop-lapse", args: &["drop", "--surplus"], prepare: shared, brings: Brings::Branches },
    Verb { name: "drop", args: &["drop"], prepare: over, brings: Brings::Branches },
    Verb { name: "get", args: &["get", "--source", "origin/main"], prepare: fetched, brings: Brings::Chunks },
    Verb {
        name: "clone",
        args: &["clone", ADDRESS, ".", "--host-key", HOST_KEY, "--identity", IDENTITY],
        prepare: nothing_here,
        brings: Brings::Clone,
    },
];

/// A command that changes an owned file, always in the same way, and says beside the tree that it ran.
pub const EXEC: &[&str] = &[
    "exec",
    "--undo",
    "echo x >>../undone",
    "--",
    "sh",
    "-c",
    // One call, so that the command itself leaves nothing in between.
    "echo x >>../ran; chmod 0604 plain",
];

/// These words stand for what is known only when the host runs.
const ADDRESS: &str = "{address}";
const HOST_KEY: &str = "{host key}";
const IDENTITY: &str = "{identity}";

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
    /// The repository.
    git_dir: PathBuf,
    /// The other host, and where ssh may put its sockets.
    elsewhere: Option<Box<(Host, Sockets)>>,
}

impl Place {
    /// Names the places below `top`, with a store of their own.
    pub fn new(gdo: &Path, top: &Path, n_threads: usize) -> Place {
        let (gdo, top) = (gdo.to_owned(), top.to_owned());
        Place { gdo, store: top.join("store"), git_dir: top.join("repo.git"), top, n_threads, elsewhere: None }
    }

    /// Takes the store of others.
    pub fn with_store(self, store: PathBuf) -> Place {
        Place { store, ..self }
    }

    /// Takes what a verb needs: another host that has its files below `dir`, and a repository where a clone would make it.
    pub fn for_verb(mut self, verb: &Verb, dir: &Path) -> Result<Place> {
        if verb.brings != Brings::Nothing {
            self.elsewhere = Some(Box::new((Host::start(&self.gdo, dir)?, Sockets::new()?)));
        }
        if verb.brings == Brings::Clone {
            self.git_dir = self.work().join(CLONED);
        }
        Ok(self)
    }

    /// Returns the work tree.
    pub fn work(&self) -> PathBuf {
        self.top.join("work")
    }

    /// Returns the repository.
    pub fn git_dir(&self) -> PathBuf {
        self.git_dir.clone()
    }

    /// Returns the other host; a verb that asks it has one.
    pub fn host(&self) -> &Host {
        &self.elsewhere.as_ref().expect("BUG: a verb that asks another host has one").0
    }

    /// Returns where ssh puts its sockets, if there is another host.
    pub fn sockets(&self) -> Option<&Sockets> {
        self.elsewhere.as_ref().map(|elsewhere| &elsewhere.1)
    }

    /// Returns the program with the verb's command line.
    pub fn command(&self, verb: &Verb) -> Command {
        let word = |word: &&str| match *word {
            ADDRESS => self.host().address(),
            HOST_KEY => self.host().host_key(),
            IDENTITY => self.host().identity(),
            word => word.to_owned(),
        };
        let words: Vec<String> = verb.args.iter().map(word).collect();
        self.gdo(&words.iter().map(String::as_str).collect::<Vec<_>>())
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
        command.env("HOME", "/nonexistent").env("USER", "root").env("TZ", "UTC").env("GIT_DEVOPS_TIME", NOW);
        if let Some(sockets) = self.sockets() {
            command.env("XDG_RUNTIME_DIR", sockets.path());
        }
        command.current_dir(self.work());
    }

    /// Runs the program, which must succeed.
    pub fn does(&self, args: &[&str]) -> Result<Outcome> {
        succeed(&mut self.gdo(args))
    }

    /// The same, some time before.
    pub fn did(&self, args: &[&str]) -> Result<Outcome> {
        succeed(self.gdo(args).env("GIT_DEVOPS_TIME", EARLIER))
    }

    /// Gives the repository a setting.
    pub fn set(&self, key: &str, value: &str) -> Result {
        succeed(&mut self.git(&["config", &format!("devops.{key}"), value])).map(drop)
    }
}

/// The time on all hosts, in seconds since 1970.
pub const NOW: &str = "1700000000";
/// Two hours before that.
const EARLIER: &str = "1699992800";

/// Runs a script there.
pub fn sh(dir: &Path, script: &str) -> Result {
    succeed(Command::new("sh").args(["-ec", script]).current_dir(dir)).map(drop)
}

/// One of each that matters, and few of it: the number of states grows with the number of entries.
pub fn tree(place: &Place) -> Result {
    std::fs::create_dir(place.work())?;
    sh(
        &place.work(),
        "mkdir -p dir/sub empty; chmod 2750 empty; chown 1000:1000 dir/sub
        echo plain >plain; echo other >dir/other; chown 1000:33 dir/other; chmod 0640 dir/other
        echo program >dir/sub/program; chmod 4755 dir/sub/program
        setfattr -n user.colour -v green plain; setfattr -n trusted.t -v 1 dir
        ln -s plain link; ln -s /nowhere dir/link; mkfifo fifo; mknod dev c 1 3
        echo twice >hard1; ln hard1 hard2; truncate -s 1M sparse; printf data | dd of=sparse bs=4096 seek=100 conv=notrunc,sync status=none
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

pub fn one_commit(place: &Place) -> Result {
    empty_repository(place)?;
    place.does(&["snapshot", "-m", "first", "."]).map(drop)
}

/// Every way in which an entry can change: content, each kind of metadata, type, and coming and going.
pub fn changed(place: &Place) -> Result {
    one_commit(place)?;
    change_all(place)
}

pub fn change_all(place: &Place) -> Result {
    sh(
        &place.work(),
        "echo PLAIN >plain; setfattr -n user.colour -v red plain; chmod 0600 dir/other; chown 0:0 dir/other
        rm link; echo 'no link' >link; ln -sfn elsewhere dir/link; rm fifo; echo new >fresh; mkdir dir/new; echo in >dir/new/in
        rm hard2; echo apart >hard2; chattr -i fixed; echo FIXED >fixed; chattr +i fixed; chmod 0700 empty
        rm dir/sub/program; echo 'new program' >dir/sub/program; chmod 0755 dir/sub/program
        printf DATA | dd of=sparse bs=4096 seek=200 conv=notrunc,sync status=none; touch -d '2021-01-01 01:01:01.5' nothing",
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

/// Two packs of chunks that compress well, one that does not get smaller, and git's objects in several packs.
fn compressible(place: &Place) -> Result {
    two_commits(place)?;
    for (name, content) in [("a", fixtures::Seeded::new(5).text(2 << 20)), ("b", fixtures::Seeded::new(6).text(3 << 20))] {
        std::fs::write(place.work().join(name), content)?;
        place.does(&["snapshot", "-m", name, "."])?;
    }
    Ok(())
}

/// As [`compressible`], and maintained while somebody had a lease, so that the old packs are still there.
fn twice_there(place: &Place) -> Result {
    compressible(place)?;
    let packs = place.store.join("packs");
    let before = n_packs(&packs)?;
    let lease = std::fs::File::open(place.store.join("lock"))?;
    lease.lock_shared()?;
    place.does(&["maintain"])?;
    // What it wrote comes beside what it was to replace.
    ensure!(n_packs(&packs)? > before, "'maintain' removed packs although somebody has a lease");
    Ok(())
}

/// How many packs there are below `dir`.
fn n_packs(dir: &Path) -> Result<usize> {
    let listed = succeed(Command::new("find").arg(dir).args(["-name", "*.pack"]))?;
    Ok(listed.text().lines().count())
}

/// As many packs of git as may be there, so that the next one is one too many.
fn many_packs(place: &Place) -> Result {
    one_commit(place)?;
    for at in 0..60 {
        std::fs::write(place.work().join("counted"), format!("{at}"))?;
        place.does(&["snapshot", "-m", "one of many", "."])?;
        if n_packs(&place.git_dir.join("objects/pack"))? == 49 {
            break;
        }
    }
    std::fs::write(place.work().join("counted"), "the last one").map_err(Into::into)
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

/// The repository of a clone, in the work tree.
pub const CLONED: &str = ".git";

/// Returns all refs, as stock git reads them; of what holders tell, which is new each time, only that it is there, and nothing of what hosts report.
pub fn refs(place: &Place) -> Result<String> {
    let listed = run(&mut place.git(&["for-each-ref", "--format=%(refname) %(objectname)"]))?.text();
    let shown = |line: &str| match line.split_once(' ') {
        Some((name, _)) if name.starts_with("refs/devops/holders/") => name.to_owned(),
        _ => line.to_owned(),
    };
    let lines = listed.lines().filter(|line| !line.starts_with("refs/devops/reports/"));
    Ok(lines.map(shown).collect::<Vec<_>>().join("\n"))
}

/// Removes all garbage, with stock git and with a run of ours: what may go on while another run is frozen.
pub fn collect_garbage(place: &Place) -> Result {
    if !place.store.join("format").exists() || !place.git_dir().join("HEAD").exists() {
        return Ok(());
    }
    // It may find itself locked out; it only has to end.
    run(&mut place.git(&["gc", "--quiet", "--prune=now"]))?;
    // A second repository that shares the store does not need the lock of the first.
    let other = Place::new(&place.gdo, &place.top.join("other"), 1).with_store(place.store.clone());
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
    Ok(without_ids(&succeed(&mut place.git(&["ls-files", "--stage"]))?.text()))
}

/// Puts nothing in the place of the names of journal entries, half of which is chance.
fn without_ids(listed: &str) -> String {
    const JOURNAL: &str = ".git-devops/journal/";
    let shown = |line: &str| match line.split_once(JOURNAL) {
        Some((before, _)) => format!("{before}{JOURNAL}"),
        None => line.to_owned(),
    };
    listed.lines().map(shown).collect::<Vec<_>>().join("\n")
}
