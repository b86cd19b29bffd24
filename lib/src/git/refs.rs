//! Refs: read here, moved by the git program, and synced so that a move said to be done survives a power cut.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use super::Oid;
use super::command::Git;
use super::reflog::{cut_torn_end, remove_log};
use crate::durable::{self, Temp};
use crate::error::{Context, Error, Kind, Reason, Result};

/// A ref that is to go from one place to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefMove {
    /// Its full name.
    pub name: String,
    /// Where it is; `None`: it must not exist.
    pub old: Option<Oid>,
    /// Where it is to be; `None`: removed.
    pub new: Option<Oid>,
}

impl RefMove {
    /// Returns what `git update-ref --stdin -z` is told.
    fn to_line(&self) -> Vec<u8> {
        let oid = |oid: Option<Oid>| oid.unwrap_or(Oid::null(gix_hash::Kind::Sha1)).to_string();
        match self.new {
            Some(new) => format!("update {}\0{new}\0{}\0", self.name, oid(self.old)),
            None => format!("delete {}\0{}\0", self.name, oid(self.old)),
        }
        .into_bytes()
    }
}

impl Git {
    /// Returns the full name of the ref that HEAD stands on, or `None` if HEAD is detached.
    pub fn head_ref(&self) -> Result<Option<String>> {
        match self.read_loose("HEAD")? {
            Some(Loose::Symbolic(name)) => Ok(Some(name)),
            Some(Loose::Direct(_)) => Ok(None),
            None => Err(corrupt("HEAD")),
        }
    }

    /// Returns the commit that HEAD stands on, or `None` on a branch without commits.
    pub fn resolve_head(&self) -> Result<Option<Oid>> {
        self.read_ref("HEAD")
    }

    /// Returns the object that the ref `name` points at, or `None` if there is no such ref; starts no program.
    pub fn read_ref(&self, name: &str) -> Result<Option<Oid>> {
        let mut name = name.to_owned();
        for _ in 0..MAX_SYMREFS {
            if name != "HEAD" {
                check_ref_name(&name)?;
            }
            match self.read_loose(&name)? {
                Some(Loose::Direct(oid)) => return Ok(Some(oid)),
                Some(Loose::Symbolic(target)) => name = target,
                None => return self.read_packed(&name),
            }
        }
        Err(Error::new(Kind::Corrupt, format!("symbolic ref '{name}' leads on and on; repair it with 'gdo git symbolic-ref'")))
    }

    /// Says whether all that the commit `old` has in its history, itself included, is in that of `new`.
    pub fn is_ancestor(&self, old: Oid, new: Oid) -> Result<bool> {
        let output = self.output(&["merge-base", "--is-ancestor", &old.to_string(), &new.to_string()], b"")?;
        Ok(output.status.success())
    }

    /// Returns the commit that `rev` means, in any of git's notations.
    pub fn resolve(&self, rev: &str) -> Result<Oid> {
        if rev == "HEAD" || rev == "@" {
            return match self.resolve_head()? {
                Some(oid) => Ok(oid),
                None => Err(Error::new(Kind::NotFound, format!("{} has no commit yet", self.shown_head()?))),
            };
        }
        let wanted = format!("{rev}^{{commit}}");
        let output = self.output(&["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted], b"")?;
        if !output.status.success() {
            let message =
                format!("'{}' is not a commit here; 'gdo log' and 'gdo git branch' list what there is", rev.escape_default());
            return Err(Error::new(Kind::NotFound, message));
        }
        Oid::from_hex(output.stdout.trim_ascii())
            .map_err(|_| Error::new(Kind::Bug, "BUG: git rev-parse did not print an object id"))
    }

    /// Returns all blobs of the repository, whether a ref leads to them or not.
    ///
    /// Git passes over a pack that vanishes before it gets there, without a word: so the list counts only if the packs were the same before and after.
    /// If they never are, somebody is repacking all the time, and the error is of the kind [`Kind::Locked`].
    pub fn all_blobs(&self) -> Result<Vec<Oid>> {
        let mut before = self.pack_names()?;
        for _ in 0..MAX_BLOB_LISTS {
            let listed = self.list_blobs();
            let after = self.pack_names()?;
            if after == before {
                return listed;
            }
            before = after;
        }
        let message = format!("somebody repacks '{}'; try again when it is done", self.git_dir().display());
        Err(Error::new(Kind::Locked, message))
    }

    /// Returns the packs that are there, and the indexes.
    pub(super) fn pack_names(&self) -> Result<BTreeSet<PathBuf>> {
        let dir = self.git_dir().join("objects/pack");
        let listed = if durable::is_dir(&dir) { durable::list(&dir)? } else { Vec::new() };
        let listed = listed.into_iter().map(|listed| listed.path);
        Ok(listed.filter(|path| path.extension().is_some_and(|extension| extension == "pack" || extension == "idx")).collect())
    }

    fn list_blobs(&self) -> Result<Vec<Oid>> {
        let args = ["cat-file", "--batch-all-objects", "--unordered", "--buffer", "--batch-check=%(objecttype) %(objectname)"];
        let listed = self.run(&args)?;
        let blobs = listed.split(|&b| b == b'\n').filter_map(|line| line.strip_prefix(b"blob "));
        blobs
            .map(|hex| Oid::from_hex(hex).map_err(|_| Error::new(Kind::Bug, "BUG: git cat-file did not print an object id")))
            .collect()
    }

    /// Moves the ref `name` from `old` (`None`: it must not exist) to `new`, and returns once that would survive a power cut.
    ///
    /// If the ref is elsewhere by now, nothing moves and the error is of the kind [`Kind::Conflict`].
    pub fn update_ref(&self, name: &str, new: Oid, old: Option<Oid>, message: &str) -> Result<()> {
        self.move_refs(&[RefMove { name: name.to_owned(), old, new: Some(new) }], message)
    }

    /// Lets HEAD stand on the branch `name`, and returns once that would survive a power cut.
    ///
    /// By git's own lock, but not by git: it does not sync a symbolic ref, and a power cut would leave an empty file, with which there is no repository.
    pub fn stand_on(&self, name: &str) -> Result<()> {
        check_ref_name(name)?;
        let what = || format!("cannot let HEAD stand on '{name}'");
        let mut lock = Temp::as_lock(&self.git_dir().join("HEAD.lock"), 0o600).context(what)?;
        lock.file.write_all(format!("ref: {name}\n").as_bytes()).context(what)?;
        lock.publish(&self.git_dir().join("HEAD")).context(what)
    }

    /// Removes the ref `name`, which points at `old`, and returns once that would survive a power cut.
    pub fn delete_ref(&self, name: &str, old: Oid) -> Result<()> {
        self.move_refs(&[RefMove { name: name.to_owned(), old: Some(old), new: None }], "")
    }

    /// Moves all of these refs, those that are removed first so that 'a/b' may come where 'a' was, and returns once that would survive a power cut.
    ///
    /// If one cannot be moved, nothing is, except that removals may be done; if it is elsewhere by now, the error is of the kind [`Kind::Conflict`].
    pub fn move_refs(&self, moves: &[RefMove], message: &str) -> Result<()> {
        let (gone, moved): (Vec<_>, Vec<_>) = moves.iter().partition(|step| step.new.is_none());
        for transaction in [&gone, &moved] {
            self.change_refs(transaction, message)?;
        }
        for step in gone {
            // Git says nothing where it cannot remove a log; and a ref that is missing beside its log was not removed by anybody.
            remove_log(self.git_dir(), &step.name).context(|| format!("cannot remove the log of ref '{}'", step.name))?;
        }
        // git syncs the files, but neither the directories of the refs and their logs nor their new parents.
        if moves.is_empty() { Ok(()) } else { durable::sync_filesystem(self.git_dir()) }
    }

    /// Lets git move all of these, or none.
    fn change_refs(&self, moves: &[&RefMove], message: &str) -> Result<()> {
        let Some(first) = moves.first() else { return Ok(()) };
        let mut input = Vec::new();
        for step in moves {
            check_ref_name(&step.name)?;
            cut_torn_end(self.git_dir(), &step.name)?;
            input.extend(step.to_line());
        }
        cut_torn_end(self.git_dir(), "HEAD")?;
        let mut args = vec!["update-ref", "--no-deref", "--stdin", "-z"];
        if !message.is_empty() {
            args.splice(1..1, ["-m", message]);
        }
        let Err(error) = self.run_with_input(&args, &input) else { return Ok(()) };
        let is_elsewhere = |step: &&&RefMove| self.read_ref(&step.name).is_ok_and(|now| now != step.old);
        let is_locked = |step: &&&RefMove| durable::is_there(&self.git_dir().join(format!("{}.lock", step.name)));
        let (culprit, kind) = match (moves.iter().find(is_elsewhere), moves.iter().find(is_locked)) {
            (Some(step), _) => (*step, Kind::Conflict),
            (None, Some(step)) => (*step, Kind::Locked),
            (None, None) => (*first, error.kind()),
        };
        Err(error.with_kind(kind).wrap(format!("cannot move ref '{}'; it stays where it is", culprit.name)))
    }

    fn shown_head(&self) -> Result<String> {
        Ok(match self.head_ref()? {
            Some(name) => format!("branch '{}'", name.strip_prefix("refs/heads/").unwrap_or(&name)),
            None => "HEAD".to_owned(),
        })
    }

    fn read_loose(&self, name: &str) -> Result<Option<Loose>> {
        let path = self.git_dir().join(name);
        if durable::is_dir(&path) {
            return Ok(None); // 'refs/heads/a' where there is a branch 'a/b'
        }
        match durable::read_if_there(&path).context(|| format!("cannot read ref '{name}'"))? {
            Some(bytes) => decode_loose(&bytes).map(Some).ok_or_else(|| corrupt(name)),
            None => Ok(None),
        }
    }

    fn read_packed(&self, name: &str) -> Result<Option<Oid>> {
        match durable::read_if_there(&self.git_dir().join("packed-refs")).context(|| "cannot read 'packed-refs'")? {
            Some(bytes) => find_packed(&bytes, name.as_bytes()),
            None => Ok(None),
        }
    }
}

/// So often the blobs are listed while packs come and go.
const MAX_BLOB_LISTS: usize = 10;

/// Says whether `name` is a full ref name that git accepts and that cannot lead out of `refs/`.
pub fn check_ref_name(name: &str) -> Result<()> {
    let problem = if !name.starts_with("refs/") {
        "does not start with 'refs/'"
    } else if name.len() > MAX_REF_NAME {
        "is too long"
    } else if name.contains("..") || name.contains("@{") {
        "contains '..' or '@{'"
    } else if name.bytes().any(|b| b <= b' ' || b == 0x7f || b"~^:?*[\\".contains(&b)) {
        "contains a character that git refuses"
    } else if !name.split('/').all(is_ref_component) {
        "has a part that git refuses"
    } else {
        return Ok(());
    };
    Err(Error::refused(Reason::RefName, format!("ref name '{}' {problem}", name.escape_default())))
}

fn is_ref_component(part: &str) -> bool {
    !part.is_empty() && part.len() <= 250 && !part.starts_with(['.', '-']) && !part.ends_with('.') && !part.ends_with(".lock")
}

/// Far more than anybody names a branch; below every limit on paths.
const MAX_REF_NAME: usize = 1000;

/// As many steps as git itself follows.
const MAX_SYMREFS: usize = 5;

#[derive(Debug, PartialEq)]
pub(super) enum Loose {
    Direct(Oid),
    Symbolic(String),
}

pub(super) fn decode_loose(bytes: &[u8]) -> Option<Loose> {
    if let Some(target) = bytes.strip_prefix(b"ref:") {
        let target = std::str::from_utf8(target.trim_ascii()).ok()?;
        return check_ref_name(target).is_ok().then(|| Loose::Symbolic(target.to_owned()));
    }
    let oid = Oid::from_hex(bytes.trim_ascii_end()).ok()?;
    (oid.kind() == gix_hash::Kind::Sha1).then_some(Loose::Direct(oid))
}

pub(super) fn find_packed(bytes: &[u8], name: &[u8]) -> Result<Option<Oid>> {
    for line in bytes.split(|&b| b == b'\n') {
        if line.get(41..) == Some(name) && line[40] == b' ' {
            return Oid::from_hex(&line[..40]).map(Some).map_err(|_| corrupt("packed-refs"));
        }
    }
    Ok(None)
}

fn corrupt(name: &str) -> Error {
    Error::new(Kind::Corrupt, format!("ref '{name}' is not what git writes; see 'gdo check'"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::git::Identity;

    fn repo() -> (tempfile::TempDir, Git) {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        (dir, git.with_identity(Identity { name: "Ann".into(), email: "ann@example.org".into() }))
    }

    fn commit(git: &Git, message: &str) -> Oid {
        let tree = git.run(&["mktree"]).unwrap();
        let tree = String::from_utf8(tree).unwrap();
        let oid = git.run(&["commit-tree", "-m", message, tree.trim()]).unwrap();
        Oid::from_hex(oid.trim_ascii()).unwrap()
    }

    #[test]
    fn a_list_of_blobs_does_not_count_while_packs_come_and_go() {
        let (_dir, git) = repo();
        git.run_with_input(&["hash-object", "-w", "--stdin"], b"x").unwrap();
        assert_eq!(git.all_blobs().unwrap().len(), 1);
        let is_done = std::sync::atomic::AtomicBool::new(false);
        let packs = git.git_dir().join("objects/pack");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0..).take_while(|_| !is_done.load(std::sync::atomic::Ordering::Relaxed)) {
                    fs::write(packs.join(format!("{number}.pack")), b"").unwrap();
                    let _ = fs::remove_file(packs.join(format!("{}.pack", number - 1)));
                }
            });
            let listed = git.all_blobs();
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            // Which of the two, the scheduler decides.
            match listed {
                Ok(blobs) => assert_eq!(blobs.len(), 1),
                Err(error) => assert_eq!(error.kind(), Kind::Locked),
            }
        });
        assert_eq!(git.all_blobs().unwrap().len(), 1);
    }

    #[test]
    fn a_ref_moves_only_from_where_it_is_expected() {
        let (_dir, git) = repo();
        let (one, two) = (commit(&git, "one"), commit(&git, "two"));
        assert_eq!(git.head_ref().unwrap().as_deref(), Some("refs/heads/main"));
        assert_eq!(git.resolve_head().unwrap(), None);
        assert_eq!(git.resolve("HEAD").unwrap_err().to_string(), "branch 'main' has no commit yet");

        git.update_ref("refs/heads/main", one, None, "snapshot").unwrap();
        assert_eq!(git.resolve_head().unwrap(), Some(one));
        let error = git.update_ref("refs/heads/main", two, None, "again").unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error:#}");
        let error = git.update_ref("refs/heads/main", two, Some(two), "again").unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error:#}");
        git.update_ref("refs/heads/main", two, Some(one), "second").unwrap();

        assert_eq!(git.resolve("main").unwrap(), two);
        assert_eq!(git.resolve("main@{1}").unwrap(), one, "the reflog was written");
        let log = fs::read_to_string(git.git_dir().join("logs/HEAD")).unwrap();
        assert!(log.contains("Ann <ann@example.org>") && log.ends_with("\tsecond\n"), "{log}");
        assert_eq!(git.resolve("--all").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(git.resolve("nothing").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn head_stands_where_git_finds_it_unless_somebody_else_moves_it() {
        let (_dir, git) = repo();
        git.stand_on("refs/heads/web").unwrap();
        assert_eq!(git.run(&["symbolic-ref", "HEAD"]).unwrap(), b"refs/heads/web\n");
        assert_eq!(git.stand_on("refs/heads/../x").unwrap_err().kind(), Kind::Refused);
        fs::write(git.git_dir().join("HEAD.lock"), "").unwrap();
        assert_eq!(git.stand_on("refs/heads/main").unwrap_err().kind(), Kind::Locked);
        assert_eq!(git.head_ref().unwrap().as_deref(), Some("refs/heads/web"));
    }

    #[test]
    fn many_refs_move_together_or_not_at_all_and_one_may_come_where_another_was() {
        let (_dir, git) = repo();
        let (one, two) = (commit(&git, "one"), commit(&git, "two"));
        let step = |name: &str, old, new| RefMove { name: format!("refs/remotes/x/{name}"), old, new };
        let at = |name: &str| git.read_ref(&format!("refs/remotes/x/{name}")).unwrap();
        git.move_refs(&[], "fetch").unwrap();
        git.move_refs(&[step("a", None, Some(one)), step("b", None, Some(one)), step("c/d", None, Some(one))], "fetch").unwrap();
        git.run(&["pack-refs", "--all"]).unwrap();
        let swap =
            [step("a/b", None, Some(two)), step("a", Some(one), None), step("c", None, Some(two)), step("c/d", Some(one), None)];
        git.move_refs(&swap, "fetch").unwrap();
        assert_eq!([at("a"), at("a/b"), at("b"), at("c"), at("c/d")], [None, Some(two), Some(one), Some(two), None]);
        let error = git.move_refs(&[step("b", Some(one), Some(two)), step("c", Some(one), Some(two))], "fetch").unwrap_err();
        assert_eq!((error.kind(), at("b")), (Kind::Conflict, Some(one)), "{error:#}");
        assert!(error.to_string().contains("'refs/remotes/x/c'"), "{error:#}");
        let error = git.move_refs(&[step("b", Some(one), Some(two)), step("../c", None, Some(two))], "fetch").unwrap_err();
        assert_eq!((error.reason(), at("b")), (Some(Reason::RefName), Some(one)), "{error:#}");
    }

    #[test]
    fn a_packed_ref_is_found_and_a_loose_one_wins() {
        let (_dir, git) = repo();
        let (one, two) = (commit(&git, "one"), commit(&git, "two"));
        git.update_ref("refs/heads/main", one, None, "m").unwrap();
        git.update_ref("refs/heads/main2", two, None, "m").unwrap();
        git.run(&["pack-refs", "--all"]).unwrap();
        assert!(!git.git_dir().join("refs/heads/main").exists());
        assert_eq!(git.resolve_head().unwrap(), Some(one));
        assert_eq!(git.read_ref("refs/heads/main2").unwrap(), Some(two));
        assert_eq!(git.read_ref("refs/heads/main3").unwrap(), None);
        git.update_ref("refs/heads/main", two, Some(one), "m").unwrap();
        assert_eq!(git.resolve_head().unwrap(), Some(two));
        git.delete_ref("refs/heads/main2", two).unwrap();
        assert_eq!(git.read_ref("refs/heads/main2").unwrap(), None);
    }

    #[test]
    fn the_log_of_a_ref_goes_with_it_also_where_git_left_it() {
        let (_dir, git) = repo();
        let one = commit(&git, "one");
        git.update_ref("refs/heads/side", one, None, "m").unwrap();
        let log = git.git_dir().join("logs/refs/heads/side");
        git.delete_ref("refs/heads/side", one).unwrap();
        assert!(!log.exists());
        fs::write(&log, "left\n").unwrap();
        remove_log(git.git_dir(), "refs/heads/side").unwrap();
        assert!(!log.exists());
        remove_log(git.git_dir(), "refs/heads/side").unwrap();
    }

    #[test]
    fn a_lock_left_by_a_dead_git_is_named_as_a_lock() {
        let (_dir, git) = repo();
        let one = commit(&git, "one");
        fs::write(git.git_dir().join("refs/heads/main.lock"), "").unwrap();
        assert_eq!(git.update_ref("refs/heads/main", one, None, "m").unwrap_err().kind(), Kind::Locked);
    }

    #[test]
    fn a_ref_name_cannot_lead_elsewhere() {
        let bad = [
            "",
            "HEAD",
            "main",
            "refs/",
            "refs/heads/",
            "refs//x",
            "refs/heads/../../x",
            "refs/heads/.x",
            "refs/heads/x.lock",
            "refs/heads/x.lock/y",
            "refs/heads/-x",
            "refs/heads/a b",
            "refs/heads/a~1",
            "refs/heads/a:b",
            "refs/heads/a\nb",
            "refs/heads/@{1}",
            "refs/heads/x.",
            "refs/heads/a\\b",
            "refs/heads/[a",
            "refs/heads/a*",
        ];
        for name in bad {
            assert_eq!(check_ref_name(name).unwrap_err().kind(), Kind::Refused, "{name}");
        }
        for name in ["refs/heads/web", "refs/tags/release/web-1.0", "refs/devops/loc/7a", "refs/heads/a@b", "refs/heads/é"] {
            check_ref_name(name).unwrap();
            std::process::Command::new("git").args(["check-ref-format", name]).status().unwrap().success().then_some(()).unwrap();
        }
    }

    #[test]
    fn a_damaged_ref_is_corrupt_and_not_absent() {
        let (_dir, git) = repo();
        for bytes in ["", "zzz", "ref: refs/heads/../../x\n", "ref: \n", "0123\n"] {
            fs::write(git.git_dir().join("HEAD"), bytes).unwrap();
            assert_eq!(git.resolve_head().unwrap_err().kind(), Kind::Corrupt, "{bytes}");
        }
        fs::write(git.git_dir().join("HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(git.git_dir().join("refs/heads/main"), "ref: refs/heads/main\n").unwrap();
        assert_eq!(git.resolve_head().unwrap_err().kind(), Kind::Corrupt);
    }
}
