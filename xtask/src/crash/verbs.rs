//! The verbs that are swept: what is there before, and the command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Context, Outcome, Result, run, succeed};
use crate::compare::{Options, compare};
use crate::{ensure, fixtures};

use super::host::{Host, Sockets};

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
    Verb::local("up", &["up", "--offline", "--to", "o/main"], released),
    Verb::local("rollback", &["rollback", "o/first"], applied),
    Verb::local("rollback-half", &["rollback", "o/first"], halted),
    Verb::local("resume", &["resume"], failed),
    Verb::local("converge", &["converge", "--offline", "--to", "o/main"], adopted),
    Verb::local("fix", &["fix", "--all"], drifted),
    Verb { name: "fetch", args: &["fetch"], prepare: more_from_a_holder, brings: Brings::Branches },
    Verb { name: "get", args: &["get", "--source", "origin/main"], prepare: fetched, brings: Brings::Chunks },
    Verb {
        name: "clone",
        args: &["clone", ADDRESS, ".", "--host-key", HOST_KEY, "--identity", IDENTITY],
        prepare: nothing_here,
        brings: Brings::Clone,
    },
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
    fn host(&self) -> &Host {
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
        command.env("HOME", "/nonexistent").env("USER", "root").env("TZ", "UTC").env("GIT_DEVOPS_TIME", "1700000000");
        if let Some(sockets) = self.sockets() {
            command.env("XDG_RUNTIME_DIR", sockets.path());
        }
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
    change_all(place)
}

fn change_all(place: &Place) -> Result {
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

/// Another host has a second commit with every way in which an entry can change, and a command and a handler after it; here is its first one.
fn released(place: &Place) -> Result {
    let origin = Place::new(&place.gdo, &place.top.join("origin"), place.n_threads).with_store(place.store.clone());
    std::fs::create_dir_all(&origin.top)?;
    one_commit(&origin)?;
    std::fs::create_dir_all(place.work())?;
    place.does(&["init"])?;
    succeed(&mut place.git(&["config", "devops.threads", &place.n_threads.to_string()]))?;
    let bring = |from: &str, to: &str| {
        let refspec = format!("+{from}:refs/remotes/o/{to}");
        succeed(&mut place.git(&["fetch", "--quiet", &origin.git_dir().display().to_string(), &refspec]))
    };
    bring("refs/heads/main", "first")?;
    place.does(&["up", "--offline", "--to", "o/first"])?;
    change_all(&origin)?;
    origin.does(&["handler", "reload", "--", "sh", "-c", "echo x >>../handled; ! test -e ../broken"])?;
    origin.does(&["attributes", "fresh", "handler=reload"])?;
    origin.does(&["snap", "-m", "second", "."])?;
    origin.does(&["exec", "--undo", "echo x >>../undone", "--", "sh", "-c", "! test -e ../failing && echo x >>../ran"])?;
    origin.does(&["ci"])?;
    bring("refs/heads/main", "main")?;
    Ok(())
}

/// The same, applied here.
fn applied(place: &Place) -> Result {
    released(place)?;
    place.does(&["up", "--offline", "--to", "o/main"]).map(drop)
}

/// The same, applied by half: the files of the second commit are in place, its handler failed. Now it would succeed.
fn halted(place: &Place) -> Result {
    halted_by(place, "broken")
}

/// The same, but for the last command, which failed, and would succeed now.
fn failed(place: &Place) -> Result {
    halted_by(place, "failing")
}

fn halted_by(place: &Place, what: &str) -> Result {
    released(place)?;
    let flag = place.top.join(what);
    std::fs::write(&flag, "")?;
    let outcome = run(&mut place.gdo(&["up", "--offline", "--to", "o/main"]))?;
    ensure!(outcome.code == HALTED, "'up' did not halt: {}", outcome.said());
    Ok(std::fs::remove_file(flag)?)
}

/// A host that was made otherwise is to become what the other host's second commit is.
fn adopted(place: &Place) -> Result {
    released(place)?;
    place.does(&["adopt", "o/first", "--begin"])?;
    std::fs::write(place.work().join("by-hand"), "what is not owned stays\n")?;
    sh(&place.work(), "echo by hand > plain; chmod 700 dir; rm link")
}

/// What was applied was changed by hand since, and some of it is gone.
fn drifted(place: &Place) -> Result {
    applied(place)?;
    sh(&place.work(), "chmod 600 fresh; echo by hand > fresh; rm -f large; touch -d '2020-02-02 02:02:02' .")
}

/// The exit code for: a person decides.
pub const HALTED: i32 = 12;

/// Fails if a command ran twice, or what is owed was not done; `is_over`: nothing is left to do.
pub fn must_have_run_once(place: &Place, verb: &Verb, is_over: bool) -> Result {
    let lines = |name: &str| std::fs::read_to_string(place.top.join(name)).unwrap_or_default().lines().count();
    if verb.name == "up" || verb.name == "resume" {
        ensure!(lines("ran") <= 1, "the command ran {} times", lines("ran"));
        ensure!(!is_over || lines("handled") >= 1, "the handler did not run");
    }
    if verb.name.starts_with("rollback") {
        ensure!(
            lines("ran") <= 1 && lines("undone") <= 1,
            "a command ran {} times, its undoing {} times",
            lines("ran"),
            lines("undone")
        );
    }
    Ok(())
}

/// The repository of a clone, in the work tree.
pub const CLONED: &str = ".git";

/// Another host is known, and was fetched from; since then its branches moved, came and went.
fn more_elsewhere(place: &Place) -> Result {
    one_commit(place)?;
    let (host, there) = (place.host(), &place.host().place);
    one_commit_without_init(there)?;
    succeed(&mut there.git(&["branch", "goes"]))?;
    let identity = host.identity();
    place.does(&["remote", "add", "origin", &host.address(), "--host-key", &host.host_key(), "--identity", &identity])?;
    place.does(&["fetch"])?;
    change_elsewhere(there)
}

/// The other host keeps a share, besides, and says so.
fn more_from_a_holder(place: &Place) -> Result {
    more_elsewhere(place)?;
    let there = &place.host().place;
    succeed(&mut there.git(&["config", "devops.policy", "holder"]))?;
    there.does(&["sync"]).map(drop)
}

/// The branches of another host are known; what it has in large files is not here.
fn fetched(place: &Place) -> Result {
    more_elsewhere(place)?;
    place.does(&["fetch"]).map(drop)
}

/// There is another host, and nothing here but an empty directory.
fn nothing_here(place: &Place) -> Result {
    one_commit_without_init(&place.host().place)?;
    std::fs::create_dir(place.work())?;
    sh(&place.work(), "touch -d '2020-02-02 02:02:02' .")
}

/// Makes a tree and its commit where there is an empty repository.
fn one_commit_without_init(there: &Place) -> Result {
    std::fs::remove_dir(there.work())?;
    tree(there)?;
    there.does(&["snapshot", "-m", "there", "."]).map(drop)
}

/// A file of several chunks is new, another changed; the branches are a new one, one less, and the first one elsewhere.
fn change_elsewhere(there: &Place) -> Result {
    std::fs::write(there.work().join("larger"), fixtures::Seeded::new(10).bytes(2 << 20))?;
    fixtures::edit_4k(&there.work().join("large"), 50_000)?;
    sh(&there.work(), "echo more >more; find . -depth ! -name fixed -exec touch -h -d '2022-02-02 02:02:02' '{}' ';'")?;
    there.does(&["snapshot", "-m", "more there", "."])?;
    succeed(&mut there.git(&["branch", "comes/deep"]))?;
    succeed(&mut there.git(&["branch", "-D", "goes"])).map(drop)
}

/// Returns all refs, as stock git reads them.
pub fn refs(place: &Place) -> Result<String> {
    Ok(run(&mut place.git(&["for-each-ref"]))?.text())
}

/// Fails unless what a verb brings from another host is here: all of its files come out of this store.
pub fn must_have_come(place: &Place, verb: &Verb) -> Result {
    if !matches!(verb.brings, Brings::Chunks | Brings::Clone) {
        return Ok(());
    }
    let (there, out) = (&place.host().place, place.host().place.top.join("out"));
    fixtures::remove(&out)?;
    let target = out.display().to_string();
    place.does(&["restore", "--source", "origin/main", "--target", &target]).context(|| "what was to come is not here")?;
    let differences = compare(&there.work(), &out, &Options::default())?;
    let shown: Vec<String> = differences.iter().take(5).map(ToString::to_string).collect();
    ensure!(shown.is_empty(), "what came differs from what is there: {}", shown.join("; "));
    Ok(())
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
    let listed = succeed(&mut place.git(&["ls-files", "--stage"]))?;
    Ok(listed.text())
}
