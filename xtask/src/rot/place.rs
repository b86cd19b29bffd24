//! A small repository with one of everything that is stored, and what it must give back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Context, Outcome, Result, run, succeed};
use crate::ensure;
use crate::fixtures::{self, Seeded};

/// A directory with a repository that is struck, and copies that are not.
pub struct Place {
    /// The program.
    pub gdo: PathBuf,
    /// What all of it lies in.
    pub top: PathBuf,
}

/// The revisions that must come back; the tree that each stands for lies in a directory of this name.
pub const REVISIONS: &[&str] = &["HEAD", "v1", "side"];

impl Place {
    /// The work tree with its repository; the only one whose path the repository knows.
    pub fn live(&self) -> PathBuf {
        self.top.join("live")
    }

    /// How [`Self::live`] was before it was struck.
    pub fn pristine(&self) -> PathBuf {
        self.top.join("pristine")
    }

    /// How it was some commits ago.
    pub fn earlier(&self) -> PathBuf {
        self.top.join("earlier")
    }

    /// A second copy, with all of it.
    pub fn second(&self) -> PathBuf {
        self.top.join("second")
    }

    /// What revision `rev` must be restored to.
    pub fn expected(&self, rev: &str) -> PathBuf {
        self.top.join("expected").join(rev)
    }

    /// Returns the program on the repository, in bounded memory and time.
    pub fn gdo(&self, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        self.surround(&mut command);
        command.args(["-c", "ulimit -v 1000000; exec timeout -k 1 60 \"$0\" \"$@\""]).arg(&self.gdo).args(args);
        command
    }

    /// Returns stock git on the repository.
    fn git(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        self.surround(&mut command);
        command.env("GIT_DIR", self.live().join(".git")).args(args);
        command
    }

    fn surround(&self, command: &mut Command) {
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command.env("HOME", "/nonexistent").env("USER", "root").env("TZ", "UTC").env("GIT_DEVOPS_TIME", "1700000000");
        command
            .env("GIT_AUTHOR_NAME", "a")
            .env("GIT_AUTHOR_EMAIL", "a@b")
            .env("GIT_COMMITTER_NAME", "a")
            .env("GIT_COMMITTER_EMAIL", "a@b");
        command.current_dir(self.live());
    }

    /// Makes all of it.
    pub fn build(&self) -> Result {
        let _ = fixtures::remove(&self.top);
        fs::create_dir_all(self.live())?;
        fs::create_dir_all(self.top.join("expected"))?;
        let does = |args: &[&str]| succeed(&mut self.gdo(args)).map(drop);
        self.sh("mkdir -p etc/sub empty; echo one >etc/a; echo two >etc/b; echo program >etc/sub/run; chmod 4755 etc/sub/run
            ln -s a etc/link; setfattr -n user.colour -v green etc/a; mkfifo fifo; chown 1000:33 etc/b
            truncate -s 1M sparse; printf data | dd of=sparse bs=4096 seek=100 conv=notrunc status=none")?;
        fs::write(self.live().join("large"), Seeded::new(1).text(300_000))?;
        fs::write(self.live().join("nested.img"), Seeded::new(2).text(300_000))?;
        does(&["init", "--quiet"])?;
        does(&["attributes", "*.img", "chunker=fixed:size=64"])?;
        does(&["snapshot", "--quiet", "-m", "first", "."])?;
        succeed(&mut self.git(&["tag", "-a", "-m", "a tag", "v1"]))?;
        does(&["git", "branch", "side"])?;
        self.copy(&self.live(), &self.expected("v1"))?;
        self.copy(&self.live(), &self.expected("side"))?;
        // With the note of what was verified: it must not hide what rots afterwards.
        does(&["check", "--data"])?;
        self.copy(&self.live(), &self.earlier())?;
        does(&["gc", "--quiet"])?;
        self.sh("echo three >etc/c; echo ONE >etc/a; chmod 0600 etc/b")?;
        fixtures::edit_4k(&self.live().join("large"), 100_000)?;
        does(&["snapshot", "--quiet", "-m", "second", "."])?;
        self.unpack_newest()?;
        self.sh("echo four >etc/d")?;
        fs::write(self.live().join("more"), Seeded::new(3).bytes(200_000))?;
        does(&["snapshot", "--quiet", "-m", "third", "."])?;
        // A command, so that there is a log of this host, and something that it said.
        does(&["exec", "--", "echo", "done"])?;
        does(&["ci", "--quiet"])?;
        does(&["git", "tag", "v2"])?;
        does(&["check", "--data"])?;
        self.copy(&self.live(), &self.expected("HEAD"))?;
        for rev in REVISIONS {
            fs::remove_dir_all(self.expected(rev).join(".git"))?;
        }
        self.copy(&self.live(), &self.pristine())?;
        self.copy(&self.live(), &self.second())
    }

    /// Makes the same at another place.
    pub fn build_like(&self, other: &Place) -> Result {
        let _ = fixtures::remove(&self.top);
        self.copy(&other.top, &self.top)?;
        // The one path that is stored.
        for copy in [self.live(), self.pristine(), self.second(), self.earlier()] {
            let list = copy.join(".git/devops/store/repositories");
            let text = fs::read_to_string(&list)?.replace(&*other.top.to_string_lossy(), &self.top.to_string_lossy());
            fs::write(&list, text)?;
        }
        Ok(())
    }

    /// Turns the pack of the last commit into loose objects, as those of stock git are.
    fn unpack_newest(&self) -> Result {
        let head = succeed(&mut self.git(&["rev-parse", "HEAD"]))?.text();
        let packs = self.live().join(".git/objects/pack");
        for entry in fs::read_dir(&packs)? {
            let path = entry?.path();
            if path.extension().is_none_or(|ext| ext != "idx") {
                continue;
            }
            let listed = succeed(Command::new("sh").args(["-c", "git show-index <\"$0\""]).arg(&path))?.text();
            if listed.contains(&head) {
                let aside = self.top.join("unpacked");
                fs::rename(path.with_extension("pack"), &aside)?;
                fs::remove_file(&path)?;
                let mut unpack = self.git(&["unpack-objects", "-q"]);
                let mut unpack = unpack.stdin(fs::File::open(&aside)?).spawn()?;
                ensure!(unpack.wait()?.success(), "git unpack-objects failed");
                return Ok(fs::remove_file(&aside)?);
            }
        }
        Err("no pack has the last commit".into())
    }

    fn sh(&self, script: &str) -> Result {
        succeed(Command::new("sh").args(["-ec", script]).current_dir(self.live())).map(drop)
    }

    fn copy(&self, from: &Path, to: &Path) -> Result {
        succeed(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
    }

    /// Makes the repository what it was before it was struck; the work tree is left alone.
    pub fn reset(&self) -> Result {
        let live = self.live().join(".git");
        if live.exists() {
            fs::remove_dir_all(&live).context(|| format!("cannot remove '{}'", live.display()))?;
        }
        self.copy(&self.pristine().join(".git"), &live)
    }

    /// Runs the program to its end.
    pub fn runs(&self, args: &[&str]) -> Result<Outcome> {
        run(&mut self.gdo(args))
    }
}
