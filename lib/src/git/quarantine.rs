//! Quarantine: a repository apart, in which what another host sends stays until it was looked at.
//!
//! Git writes there and nowhere else while it fetches. Every ref name, tree and commit is then read by our own decoders, and only what they take
//! is written into the repository, in packs of ours.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::object::{ObjectKind, decode_tree};
use super::refs::check_ref_name;
use super::{CommitData, Git, Kept, Objects, Oid, PackWriter};
use crate::child::{self, Words};
use crate::durable::{self, Scratch};
use crate::error::{Context, Error, Kind, Reason, Result};

/// More branches than this one host need not have.
const MAX_REFS: usize = 10_000;
/// Longest blob that is taken over, in bytes: it is read whole.
const MAX_BLOB: u64 = 128 << 20;
/// Where the records of holders are, under the holders' ids.
pub const HOLDERS: &str = "refs/devops/holders/";
const BRANCHES: &str = "refs/heads/";
/// Where the reports of hosts stand.
pub const REPORTS: &str = "refs/devops/reports/";
/// Where the tags of releases are.
pub const RELEASES: &str = "refs/tags/release/";
/// Where root documents are, under their versions.
pub const ROOTS: &str = "refs/devops/trust/";
/// Where a host names the chunks that are on their way from it: the one ref [`HANDED`] of its own.
pub const IN_FLIGHT: &str = "refs/devops/in-flight/";
/// The name of that ref below [`IN_FLIGHT`].
pub const HANDED: &str = "run";
/// What the name of the directory begins with.
const PREFIX: &str = "incoming-";

/// What was fetched and not yet taken over; it is gone when dropped.
pub struct Quarantine {
    git: Git,
    dir: Scratch,
}

/// How long, and how much, another host may send.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// In this time [`LEAST`] bytes must come. Keep-alives of ssh do not see a host that stopped.
    silence: Duration,
    /// It may take as long as this, and a second more for each [`RATE`] bytes of objects that came: who trickles ends, too.
    patience: Duration,
    /// Bytes of objects, at most.
    most: u64,
}

const LIMITS: Limits = Limits { silence: Duration::from_secs(60), patience: Duration::from_secs(3600), most: 16 << 30 };
/// So many bytes must come, as data or as words, or the host counts as silent.
const LEAST: u64 = 256;
/// See [`Limits::patience`].
const RATE: u64 = 4 << 10;
/// How often is looked.
const TICK: Duration = Duration::from_millis(20);
/// How long git's last words may take after its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Quarantine {
    /// Makes an empty one in the state directory `state`, for what `git` does not have.
    pub fn open(git: &Git, state: &Path) -> Result<Self> {
        let what = || "cannot make a quarantine for what comes in";
        let dir = Scratch::make(state, PREFIX).context(what)?;
        // A git that outlives us is still in there.
        dir.share_with_children().context(what)?;
        let inner = Git::init(&dir.path().join("repo"), "none").context(what)?;
        let quarantine = Self { git: inner, dir };
        let objects = git.git_dir().join("objects");
        let path = quarantine.git.git_dir().join("objects/info/alternates");
        durable::publish(&path, &[objects.as_os_str().as_encoded_bytes(), b"\n"].concat(), 0o600).context(what)?;
        Ok(quarantine)
    }

    /// Removes what runs that were killed left in `state`.
    pub fn clear(state: &Path) -> Result<()> {
        Scratch::clear(state, PREFIX)
    }

    /// Fetches all branches from `url`, which `ssh_command` reaches and where `upload_pack` answers; a host that falls silent, trickles or sends
    /// without end is given up.
    pub fn fetch(&self, url: &str, upload_pack: &str, ssh_command: &OsStr) -> Result<()> {
        self.fetch_within(LIMITS, url, upload_pack, ssh_command)
    }

    fn fetch_within(&self, limits: Limits, url: &str, upload_pack: &str, ssh_command: &OsStr) -> Result<()> {
        let upload_pack = format!("--upload-pack={upload_pack}");
        let mut command = self.git.command(&[
            "-c",
            "protocol.version=2",
            "-c",
            "fetch.unpackLimit=1",
            "fetch",
            "--progress",
            "--no-tags",
            "--no-write-fetch-head",
            &upload_pack,
            url,
            "+refs/heads/*:refs/heads/*",
            "+refs/devops/holders/*:refs/devops/holders/*",
            "+refs/devops/in-flight/*:refs/devops/in-flight/*",
            "+refs/devops/reports/*:refs/devops/reports/*",
            "+refs/devops/trust/*:refs/devops/trust/*",
            "+refs/tags/release/*:refs/tags/release/*",
        ]);
        command.env("GIT_SSH_COMMAND", ssh_command).env("GIT_SSH_VARIANT", "ssh").current_dir(self.dir.path());
        let what = || "cannot run git (is it installed?)";
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context(what)?;
        let said = Words::of(child.stderr.take());
        let watched = self.watch(limits, &mut child, &said);
        if watched.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().context(what)?;
        watched?;
        if status.success() {
            return Ok(());
        }
        let said = said.to_text(LAST_WORDS);
        // What git's own check refuses is no trouble with the line.
        let kind = if said.contains("fsck error") { Kind::Refused } else { Kind::Io };
        let is_error = |line: &&str| line.starts_with("error: ") || line.starts_with("fatal: ");
        let told = said.lines().find(is_error).or(said.lines().next_back()).unwrap_or("git fetch failed without a word");
        Err(Error::new(kind, format!("git says: {}", child::told(told))))
    }

    /// Waits for the end of git, or fails when the other host is beyond a limit.
    fn watch(&self, limits: Limits, child: &mut Child, said: &Words) -> Result<()> {
        let started = Instant::now();
        let (mut seen, mut since) = (0, started);
        while child.try_wait().context(|| "cannot wait for git")?.is_none() {
            let came = self.n_bytes();
            let now = said.n_bytes() + came;
            if now >= seen + LEAST {
                (seen, since) = (now, Instant::now());
            }
            let (silent, took) = (since.elapsed(), started.elapsed());
            let told = if silent > limits.silence {
                format!("{} bytes came within {} seconds", now.saturating_sub(seen), silent.as_secs())
            } else if took > limits.patience + Duration::from_secs(came / RATE) {
                format!("only {came} bytes came within {} seconds", took.as_secs())
            } else if came > limits.most {
                format!("more than {} MiB came, and no end", limits.most >> 20)
            } else {
                std::thread::sleep(TICK);
                continue;
            };
            return Err(Error::new(Kind::Io, told));
        }
        Ok(())
    }

    /// Returns how many bytes have come.
    fn n_bytes(&self) -> u64 {
        let packs = durable::list(&self.git.git_dir().join("objects/pack")).unwrap_or_default();
        packs.iter().filter_map(|listed| durable::look(&listed.path).ok()).map(|meta| meta.len()).sum()
    }

    /// Returns the directory of the quarantine, for files about what came.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the repository in which it is.
    pub fn git_dir(&self) -> &Path {
        self.git.git_dir()
    }

    /// Returns the branches that came, by their names below `refs/heads/`; a name that cannot be is refused.
    pub fn branches(&self) -> Result<BTreeMap<String, Oid>> {
        self.refs(BRANCHES)
    }

    /// Returns the records of holders that came, by what should be the holders' ids.
    pub fn holders(&self) -> Result<BTreeMap<String, Oid>> {
        self.refs(HOLDERS)
    }

    /// Returns the reports of hosts that came, by what should be the hosts' ids.
    pub fn reports(&self) -> Result<BTreeMap<String, Oid>> {
        self.refs(REPORTS)
    }

    /// Returns the commit that names the chunks on their way from that host, if there are any.
    pub fn in_flight(&self) -> Result<Option<Oid>> {
        Ok(self.refs(IN_FLIGHT)?.get(HANDED).copied())
    }

    /// Returns the tags of releases that came, by their names below `refs/tags/release/`.
    pub fn releases(&self) -> Result<BTreeMap<String, Oid>> {
        self.refs(RELEASES)
    }

    /// Returns the root documents that came, by what should be their versions.
    pub fn roots(&self) -> Result<BTreeMap<String, Oid>> {
        self.refs(ROOTS)
    }

    fn refs(&self, below: &str) -> Result<BTreeMap<String, Oid>> {
        let listed = self.git.run(&["for-each-ref", "--format=%(objectname) %(refname)"])?;
        let mut refs = BTreeMap::new();
        for (at, line) in String::from_utf8_lossy(&listed).lines().enumerate() {
            let (oid, name) = line.split_once(' ').unwrap_or_default();
            check_ref_name(name)?;
            let is_asked = [BRANCHES, HOLDERS, IN_FLIGHT, RELEASES, REPORTS, ROOTS].iter().any(|asked| name.starts_with(asked));
            let (true, Ok(oid)) = (is_asked, Oid::from_hex(oid.as_bytes())) else {
                return Err(Error::refused(
                    Reason::RefName,
                    format!("a ref came that nobody asked for: '{}'", name.escape_debug()),
                ));
            };
            refs.extend(name.strip_prefix(below).map(|name| (name.to_owned(), oid)));
            if at >= MAX_REFS {
                return Err(Error::refused(Reason::RefName, format!("more than {MAX_REFS} refs came")));
            }
        }
        Ok(refs)
    }

    /// Writes what the branches and the objects `more` need, and no ref of `git` reaches, into the repository of `git`; returns the guarded pack.
    ///
    /// An object that our decoders refuse is an error, and nothing is written.
    pub fn take_over(&self, git: &Git, objects: &Objects, more: &[Oid]) -> Result<Option<Kept>> {
        let tips = self.branches()?;
        let args = ["rev-list", "--objects", "--no-object-names", "--stdin"];
        let known = git.run(&["for-each-ref", "--format=^%(objectname)"])?;
        let mut input: Vec<u8> = tips.values().chain(more).flat_map(|oid| format!("{oid}\n").into_bytes()).collect();
        input.extend(known);
        let listed = self.git.run_with_input(&args, &input).context(|| "what came is not complete")?;
        let came = Objects::open(self.git.git_dir())?;
        let pack = PackWriter::new(git.git_dir(), objects)?;
        for hex in listed.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let oid = Oid::from_hex(hex).map_err(|_| Error::new(Kind::Bug, "BUG: git rev-list did not print an object id"))?;
            let what = || format!("cannot take over object {oid}");
            if came.blob_size(&oid).is_ok_and(|size| size.is_some_and(|size| size > MAX_BLOB)) {
                let message = format!("it has more than {} MiB, which no small file and no chunk index has", MAX_BLOB >> 20);
                return Err(Error::new(Kind::Refused, message)).context(what);
            }
            let (kind, content) = came.find(&oid)?.ok_or_else(|| Error::new(Kind::Corrupt, "it did not come")).context(what)?;
            check(kind, &content).map_err(|error| error.or_refused(Reason::TreeEntry)).context(what)?;
            pack.put_anew(kind, &content)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_says_nothing_is_given_up_and_what_a_dead_run_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let git = Git::init(&temp.path().join("repo"), "main").unwrap();
        let state = temp.path().join("state");
        std::fs::create_dir_all(state.join("incoming-dead/repo")).unwrap();
        std::fs::write(state.join("incoming-dead/lock"), "").unwrap();
        let quarantine = Quarantine::open(&git, &state).unwrap();
        Quarantine::clear(&state).unwrap();
        assert!(quarantine.dir.path().exists() && !state.join("incoming-dead").exists());
        let limits = Limits { silence: Duration::from_secs(1), ..LIMITS };
        let fetch_within = |limits, ssh: &str| quarantine.fetch_within(limits, "ssh://x/", "upload", ssh.as_ref()).unwrap_err();
        let fetch = |ssh: &str| fetch_within(limits, ssh);
        let started = Instant::now();
        assert_eq!(fetch("sleep 30 #").to_string(), "0 bytes came within 1 seconds");
        assert!(started.elapsed() < Duration::from_secs(20));
        // Who speaks now and then is not silent, and what git says in the end is told.
        let told = fetch("sh -c 'for i in 1 2 3 4; do printf %300d\\\\n $i >&2; sleep 0.5; done; exit 1' #").to_string();
        assert!(told.starts_with("git says: fatal: "), "{told}");
        // Words are no objects: who only trickles them comes to an end as well.
        let limits = Limits { patience: Duration::from_secs(2), ..limits };
        let started = Instant::now();
        let told = fetch_within(limits, "sh -c 'for i in $(seq 60); do printf %300d\\n $i >&2; sleep 0.5; done' #").to_string();
        assert!(told.starts_with("only 0 bytes came within ") && started.elapsed() < Duration::from_secs(20), "{told}");
        // And who sends without end.
        std::fs::write(quarantine.git.git_dir().join("objects/pack/tmp_pack_x"), [0; 5000]).unwrap();
        let told = fetch_within(Limits { most: 4096, ..LIMITS }, "sleep 30 #").to_string();
        assert_eq!(told, "more than 0 MiB came, and no end");
        drop(quarantine);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    }
}
