//! Quarantine: a repository apart, in which what another host sends stays until it was looked at.
//!
//! Git writes there and nowhere else while it fetches. Every ref name, tree and commit is then read by our own decoders, and only what they take
//! is written into the repository, in packs of ours.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::object::{ObjectKind, decode_tree};
use super::refs::check_ref_name;
use super::{CommitData, Git, Kept, Objects, Oid, PackWriter};
use crate::durable;
use crate::error::{Context, Error, Kind, Reason, Result};

/// More refs than this one host need not have.
const MAX_REFS: usize = 100_000;
/// What the name of the directory begins with.
pub const PREFIX: &str = "incoming-";

/// What was fetched and not yet taken over; it is gone when dropped.
pub struct Quarantine {
    git: Git,
    dir: PathBuf,
}

impl Quarantine {
    /// Makes an empty one in the state directory `state`, for what `git` does not have.
    pub fn open(git: &Git, state: &Path) -> Result<Self> {
        let what = || "cannot make a quarantine for what comes in";
        let dir = durable::make_scratch_dir(state, PREFIX).context(what)?;
        let inner = Git::init(&dir.join("repo"), "none").context(what)?;
        let quarantine = Self { git: inner, dir };
        let objects = git.git_dir().join("objects");
        let path = quarantine.git.git_dir().join("objects/info/alternates");
        durable::publish(&path, &[objects.as_os_str().as_encoded_bytes(), b"\n"].concat(), 0o600).context(what)?;
        Ok(quarantine)
    }

    /// Fetches all branches from `url`, which `ssh_command` reaches and where `upload_pack` answers.
    pub fn fetch(&self, url: &str, upload_pack: &str, ssh_command: &OsStr) -> Result<()> {
        let upload_pack = format!("--upload-pack={upload_pack}");
        let mut command = self.git.command(&[
            "-c",
            "protocol.version=2",
            "-c",
            "fetch.unpackLimit=1",
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            &upload_pack,
            url,
            "+refs/heads/*:refs/heads/*",
        ]);
        command.env("GIT_SSH_COMMAND", ssh_command).env("GIT_SSH_VARIANT", "ssh").current_dir(&self.dir);
        let output = command.stdin(Stdio::null()).output().context(|| "cannot run git (is it installed?)")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        // What git's own check refuses is no trouble with the line.
        let kind = if said.contains("fsck error") { Kind::Refused } else { Kind::Io };
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("git fetch failed without a word");
        Err(Error::new(kind, format!("git says: {}", said.escape_debug())))
    }

    /// Returns the branches that came, by their names below `refs/heads/`; a name that cannot be is refused.
    pub fn branches(&self) -> Result<BTreeMap<String, Oid>> {
        let listed = self.git.run(&["for-each-ref", "--format=%(objectname) %(refname)"])?;
        let mut branches = BTreeMap::new();
        for line in String::from_utf8_lossy(&listed).lines() {
            let (oid, name) = line.split_once(' ').unwrap_or_default();
            check_ref_name(name)?;
            let branch = name.strip_prefix("refs/heads/");
            let oid = Oid::from_hex(oid.as_bytes()).ok();
            let (Some(branch), Some(oid)) = (branch, oid) else {
                return Err(Error::refused(
                    Reason::RefName,
                    format!("a ref came that nobody asked for: '{}'", name.escape_debug()),
                ));
            };
            branches.insert(branch.to_owned(), oid);
            if branches.len() > MAX_REFS {
                return Err(Error::refused(Reason::RefName, format!("more than {MAX_REFS} branches came")));
            }
        }
        Ok(branches)
    }

    /// Writes what the branches need, and no ref of `git` reaches, into the repository of `git`; returns the guarded pack.
    ///
    /// An object that our decoders refuse is an error, and nothing is written.
    pub fn take_over(&self, git: &Git, objects: &Objects) -> Result<Option<Kept>> {
        let tips = self.branches()?;
        let args = ["rev-list", "--objects", "--no-object-names", "--stdin"];
        let known = git.run(&["for-each-ref", "--format=^%(objectname)"])?;
        let mut input: Vec<u8> = tips.values().flat_map(|oid| format!("{oid}\n").into_bytes()).collect();
        input.extend(known);
        let listed = self.git.run_with_input(&args, &input).context(|| "what came is not complete")?;
        let came = Objects::open(self.git.git_dir())?;
        let pack = PackWriter::new(git.git_dir(), objects)?;
        for hex in listed.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let oid = Oid::from_hex(hex).map_err(|_| Error::new(Kind::Bug, "BUG: git rev-list did not print an object id"))?;
            let what = || format!("cannot take over object {oid}");
            let (kind, content) = came.find(&oid)?.ok_or_else(|| Error::new(Kind::Corrupt, "it did not come")).context(what)?;
            check(kind, &content).map_err(|error| error.or_refused(Reason::TreeEntry)).context(what)?;
            pack.put(kind, &content)?;
        }
        pack.finish()
    }
}

/// Reads an object as strictly as a restore will.
fn check(kind: ObjectKind, content: &[u8]) -> Result<()> {
    match kind {
        ObjectKind::Tree => decode_tree(content).map(drop),
        ObjectKind::Commit => CommitData::decode(content).map(drop),
        _ => Ok(()),
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        // What stays is removed by the next one who takes the lock.
        let _ = durable::remove_dir_all(&self.dir);
    }
}
