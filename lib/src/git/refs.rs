//! Refs: read here, moved by the git program, and synced so that a move said to be done survives a power cut.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Oid;
use super::command::Git;
use super::reflog::cut_torn_end;
use crate::durable;
use crate::error::{Context, Error, Kind, Reason, Result};

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

    fn pack_names(&self) -> Result<BTreeSet<PathBuf>> {
        let listed = durable::list(&self.git_dir().join("objects/pack"))?.into_iter().map(|listed| listed.path);
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
        let (new, expected) = (new.to_string(), old.unwrap_or(Oid::null(gix_hash::Kind::Sha1)).to_string());
        self.change_ref(name, old, &["update-ref", "--no-deref", "-m", message, name, &new, &expected])
    }

    /// Removes the ref `name`, which points at `old`, and returns once that would survive a power cut.
    pub fn delete_ref(&self, name: &str, old: Oid) -> Result<()> {
        self.change_ref(name, Some(old), &["update-ref", "--no-deref", "-d", name, &old.to_string()])
    }

    fn change_ref(&self, name: &str, old: Option<Oid>, args: &[&str]) -> Result<()> {
        check_ref_name(name)?;
        for log in [name, "HEAD"] {
            cut_torn_end(self.git_dir(), log)?;
        }
        if let Err(error) = self.run(args) {
            let kind = match self.read_ref(name) {
                Ok(now) if now != old => Kind::Conflict,
                _ if durable::is_there(&self.git_dir().join(format!("{name}.lock"))) => Kind::Locked,
                _ => error.kind(),
            };
            return Err(error.with_kind(kind).wrap(format!("cannot move ref '{name}'; it stays where it is")));
        }
        // git syncs the files, but neither the directories of the ref and its log nor their new parents.
        durable::sync_filesystem(self.git_dir())
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
enum Loose {
    Direct(Oid),
    Symbolic(String),
}

fn decode_loose(bytes: &[u8]) -> Option<Loose> {
    if let Some(target) = bytes.strip_prefix(b"ref:") {
        let target = std::str::from_utf8(target.trim_ascii()).ok()?;
        return check_ref_name(target).is_ok().then(|| Loose::Symbolic(target.to_owned()));
    }
    let oid = Oid::from_hex(bytes.trim_ascii_end()).ok()?;
    (oid.kind() == gix_hash::Kind::Sha1).then_some(Loose::Direct(oid))
}

fn find_packed(bytes: &[u8], name: &[u8]) -> Result<Option<Oid>> {
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
