//! The mirror: a checksummed second record of what git keeps without a checksum (HEAD, configuration, refs).
//!
//! `git fsck` follows refs but cannot know where they ought to stand. Each repository therefore has a mirror in its state directory, replaced after
//! each move of a ref. Other programs may move refs too: git's own log of the ref is the second witness. Format and rules: `docs/formats/mirror.md`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use super::reflist::Mtime;

use super::quarantine::{HOLDERS, REPORTS};
use super::reflist::{Copy, MAX_LEN, Packed, RefList, Value, names_of_logs, read_copy};
use super::reflog::{Log, log_path, sound_lines};
use super::refs::check_ref_name;
use super::{Git, Identity, Objects, Oid};
use crate::durable;
use crate::endline;
use crate::error::{Context, Error, Kind, Result};

/// What a repository looked like when it was last known to be good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    files: BTreeMap<String, Copy>,
    packed: Option<Packed>,
    refs: BTreeMap<String, Ref>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ref {
    oid: Oid,
    /// Whether git keeps a log of it: git removes the log of a ref that it deletes, so a ref that is gone while its log is there was lost.
    has_log: bool,
}

/// Something that is not as it was left, and that no witness explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// The file concerned.
    pub path: PathBuf,
    /// Where in it, in bytes, if that is known.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether nothing may be read or written before it is settled.
    pub stops: bool,
    wanted: Option<Oid>,
    cure: Option<Cure>,
}

impl Deviation {
    /// Returns a deviation of the mirror itself, which stops nothing.
    pub fn of_mirror(path: PathBuf, problem: String, remedy: String) -> Self {
        Self { path, offset: None, problem, remedy, stops: false, wanted: None, cure: None }
    }

    /// Returns the object that a ref ought to be at, whether it is here or not.
    pub fn wanted(&self) -> Option<Oid> {
        self.wanted
    }

    /// Says whether what it was is known beyond doubt.
    pub fn is_curable(&self) -> bool {
        self.cure.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cure {
    /// The file gets this content.
    File { name: String, content: Vec<u8> },
    /// The ref points here.
    Ref { name: String, oid: Oid },
    /// `packed-refs` is made anew from what is known of every ref.
    Packed,
}

/// The mirror's name in the state directory.
const FILE: &str = "mirror";
const HEAD_LINE: &str = "git-devops mirror 1\n";
const HEAD_NAME: &str = "git-devops mirror ";

/// Longest file that is copied, in bytes.
const MAX_COPY: usize = 1 << 20;

/// Files that are copied whole, and whether a repository is none without it.
const COPIED: &[(&str, bool)] = &[
    ("HEAD", true),
    ("config", true),
    ("info/attributes", true),
    ("info/exclude", false),
    ("info/sparse-checkout", true),
    ("objects/info/alternates", false),
];

/// The remedy where only a person can know.
const ASK: &str = "if that is how it should be, say 'gdo check --accept'";

/// The remedy where what it was is known.
pub const HEALED: &str =
    "nothing: it was put back as the mirror and git's log have it; what stood there is in 'quarantine' in the state directory";

impl Mirror {
    /// Reads the mirror in the state directory `state`; `None` if there is none yet.
    pub fn read(state: &Path) -> Result<Option<Self>> {
        let path = Self::path(state);
        let what = || format!("cannot use '{}'", path.display());
        match durable::look(&path) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error.wrap(what())),
            Ok(meta) if meta.len() > MAX_LEN => return Err(damaged("is too long").wrap(what())),
            Ok(_) => (),
        }
        Self::decode(&durable::read(&path).context(what)?).context(what).map(Some)
    }

    /// Replaces the mirror in `state`, durably.
    pub fn write(&self, state: &Path) -> Result<()> {
        durable::publish(&Self::path(state), &self.encode(), 0o600)
    }

    /// Returns where the mirror is.
    pub fn path(state: &Path) -> PathBuf {
        state.join(FILE)
    }

    /// Returns when the mirror in the state directory `state` was written; `None` if there is none.
    pub fn noted_at(state: &Path) -> Result<Option<Mtime>> {
        mtime_of(&Self::path(state))
    }

    /// Returns what the repository at `git_dir` looks like now.
    pub fn of(git_dir: &Path) -> Result<Self> {
        let seen = RefList::of(git_dir)?;
        let mut mirror = Self { packed: seen.packed, ..Self::default() };
        for (name, _) in COPIED {
            if let Some(copy) = read_copy(&git_dir.join(name))?.filter(|copy| copy.content.len() <= MAX_COPY) {
                mirror.files.insert((*name).to_owned(), copy);
            }
        }
        for (name, value) in seen.refs {
            if let Value::Direct(oid) = value {
                let has_log = durable::is_file(&log_path(git_dir, &name));
                mirror.refs.insert(name, Ref { oid, has_log });
            }
        }
        Ok(mirror)
    }

    /// Returns this mirror with what `now` has instead, but for what is in `doubtful`: that stays as it was.
    #[must_use]
    pub fn advanced(&self, mut now: Self, doubtful: &[Deviation], git_dir: &Path) -> Self {
        for deviation in doubtful {
            let Ok(name) = deviation.path.strip_prefix(git_dir) else { continue };
            let name = name.to_string_lossy().into_owned();
            if name == "packed-refs" {
                now.packed.clone_from(&self.packed);
            }
            keep(&self.files, &mut now.files, &name);
            keep(&self.refs, &mut now.refs, &name);
        }
        now
    }

    /// Encodes the mirror.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = HEAD_LINE.as_bytes().to_vec();
        for (name, Copy { mtime, content }) in &self.files {
            text.extend(format!("file {name} {}.{:09} {}\n", mtime.0, mtime.1, content.len()).bytes());
            text.extend(content);
            text.push(b'\n');
        }
        if let Some(Packed { mtime, hash }) = &self.packed {
            text.extend(format!("hash packed-refs {}.{:09} {}\n", mtime.0, mtime.1, hash.to_hex()).bytes());
        }
        for (name, Ref { oid, has_log }) in &self.refs {
            let log = if *has_log { "logged" } else { "unlogged" };
            text.extend(format!("ref {oid} {log} {name}\n").bytes());
        }
        endline::add(text)
    }

    /// Decodes a mirror; anything unexpected is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let body = endline::strip(bytes).ok_or_else(|| damaged("does not match its checksum"))?;
        let Some(mut rest) = body.strip_prefix(HEAD_LINE.as_bytes()) else {
            return Err(match body.starts_with(HEAD_NAME.as_bytes()) {
                true => Error::new(Kind::Unsupported, "it has a newer version; use a newer program"),
                false => damaged("does not begin as one"),
            });
        };
        let mut mirror = Self::default();
        while !rest.is_empty() {
            rest = mirror.decode_entry(rest).ok_or_else(|| damaged("has an entry that is not understood"))?;
        }
        match mirror.encode() == bytes {
            true => Ok(mirror),
            false => Err(damaged("has entries out of order")),
        }
    }

    fn decode_entry<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let end = bytes.iter().position(|&b| b == b'\n')?;
        let (line, rest) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
        let mut words = line.splitn(4, ' ');
        match (words.next()?, words.next()?, words.next()?, words.next()?) {
            ("file", name, mtime, len) => {
                let len: usize = len.parse().ok()?;
                let content = rest.get(..len)?.to_vec();
                self.files.insert(name.to_owned(), Copy { mtime: decode_mtime(mtime)?, content });
                rest[len..].strip_prefix(b"\n")
            }
            ("hash", "packed-refs", mtime, hash) => {
                self.packed = Some(Packed { mtime: decode_mtime(mtime)?, hash: blake3::Hash::from_hex(hash).ok()? });
                Some(rest)
            }
            ("ref", oid, log, name) => {
                check_ref_name(name).ok()?;
                let has_log = log == "logged";
                self.refs.insert(name.to_owned(), Ref { oid: Oid::from_hex(oid.as_bytes()).ok()?, has_log });
                Some(rest)
            }
            _ => None,
        }
    }
}

fn keep<T: Clone>(old: &BTreeMap<String, T>, new: &mut BTreeMap<String, T>, name: &str) {
    match old.get(name) {
        Some(value) => drop(new.insert(name.to_owned(), value.clone())),
        None => drop(new.remove(name)),
    }
}

fn decode_mtime(text: &str) -> Option<Mtime> {
    let (seconds, nanos) = text.split_once('.')?;
    Some((seconds.parse().ok()?, nanos.parse().ok()?))
}

fn damaged(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the mirror of HEAD, configuration and refs {why}"))
}

/// Compares the files that git needs before anything can be read, with the mirror.
///
/// Rot does not change a file's time, people and programs do, and a clock may be set back: content that differs under the very same time was
/// changed by nobody.
pub fn examine_files(git_dir: &Path, mirror: &Mirror) -> Result<Vec<Deviation>> {
    let mut found = Vec::new();
    for (name, is_needed) in COPIED {
        let Some(was) = mirror.files.get(*name) else { continue };
        let path = git_dir.join(name);
        let problem = match read_copy(&path)? {
            None if *is_needed => "it is missing".to_owned(),
            None => {
                let remedy = format!("'gdo check --repair' brings it back; {ASK}");
                found.push(Deviation { remedy, ..curable(path, "it is missing", &[(name, was)]) });
                continue;
            }
            Some(now) if now.content == was.content => continue,
            Some(now) if now.mtime == was.mtime => "its content changed, but nobody wrote it".to_owned(),
            Some(now) if *name == "HEAD" => match head_problem(git_dir, &now.content)? {
                Some(problem) => problem,
                None => continue,
            },
            Some(_) => continue,
        };
        found.push(Deviation { stops: true, ..curable(path, &problem, &[(name, was)]) });
    }
    Ok(found)
}

fn curable(path: PathBuf, problem: &str, was: &[(&str, &Copy)]) -> Deviation {
    let cure = was.first().map(|(name, copy)| Cure::File { name: (*name).to_owned(), content: copy.content.clone() });
    Deviation { path, offset: None, problem: problem.to_owned(), remedy: HEALED.into(), stops: false, wanted: None, cure }
}

/// Says what is wrong with a HEAD that somebody wrote: it must stand on a branch that is there, or on an object.
fn head_problem(git_dir: &Path, content: &[u8]) -> Result<Option<String>> {
    let text = String::from_utf8_lossy(content);
    let Some(target) = text.strip_prefix("ref:").map(str::trim) else {
        let is_oid = Oid::from_hex(text.trim_end().as_bytes()).is_ok();
        return Ok((!is_oid).then(|| "it is not what git writes".to_owned()));
    };
    if check_ref_name(target).is_err() {
        return Ok(Some("it names a ref that cannot be".to_owned()));
    }
    let is_there = RefList::of(git_dir)?.refs.contains_key(target);
    Ok((!is_there).then(|| format!("it names the branch '{target}', which is not there")))
}

/// Compares all refs with the mirror, if there is one, and with git's logs.
pub fn examine_refs(
    git_dir: &Path,
    objects: &Objects,
    mirror: Option<&Mirror>,
    noted_at: Option<Mtime>,
) -> Result<Vec<Deviation>> {
    let seen = RefList::of(git_dir)?;
    let none = Mirror::default();
    let known = mirror.unwrap_or(&none);
    let mut found = Vec::new();
    if let Some(deviation) = examine_packed(git_dir, &seen, known) {
        found.push(deviation);
    }
    let names: BTreeSet<&String> = known.refs.keys().chain(seen.refs.keys()).collect();
    for name in names {
        let (was, now) = (known.refs.get(name), seen.refs.get(name));
        if let (Some(was), Some(Value::Direct(now))) = (was, now)
            && was.oid == *now
        {
            continue;
        }
        if now == Some(&Value::Symbolic) {
            continue;
        }
        found.extend(examine_ref(git_dir, objects, name, was, now, noted_at)?);
    }
    settle_forward(&mut found, objects, known, &seen, git_dir);
    Ok(found)
}

/// Returns when the file that holds a ref was written; `None` if there is none.
fn written_at(git_dir: &Path, name: &str) -> Result<Option<Mtime>> {
    let loose = git_dir.join(name);
    let path = if durable::is_file(&loose) { loose } else { git_dir.join("packed-refs") };
    mtime_of(&path)
}

fn mtime_of(path: &Path) -> Result<Option<Mtime>> {
    match durable::look(path) {
        Ok(meta) => Ok(Some((meta.mtime(), meta.mtime_nsec()))),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn examine_packed(git_dir: &Path, seen: &RefList, known: &Mirror) -> Option<Deviation> {
    let path = git_dir.join("packed-refs");
    let changed = match (&known.packed, &seen.packed) {
        (Some(was), Some(now)) if was.hash != now.hash && now.mtime == was.mtime => {
            Some("its content changed, but nobody wrote it")
        }
        (Some(_), None) if known.refs.keys().any(|name| !seen.refs.contains_key(name)) => Some("it is missing, and refs with it"),
        _ => None,
    };
    let (offset, problem) = match (seen.packed_problem, changed) {
        (Some(at), _) => (Some(at), "this is no line that git writes"),
        (None, Some(problem)) => (None, problem),
        (None, None) => return None,
    };
    let problem = problem.to_owned();
    Some(Deviation { path, offset, problem, remedy: HEALED.into(), stops: true, wanted: None, cure: Some(Cure::Packed) })
}

/// Judges one ref that is not where the mirror has it.
fn examine_ref(
    git_dir: &Path,
    objects: &Objects,
    name: &str,
    was: Option<&Ref>,
    now: Option<&Value>,
    noted_at: Option<Mtime>,
) -> Result<Option<Deviation>> {
    let log = Log::read(git_dir, name)?;
    if let Some(Value::Direct(now)) = now {
        // Whoever moved it said so. Or it is new, and there never was a log; or the log was cleared, and the ref written since: a disk changes no times.
        let is_told = match log.as_ref().and_then(Log::last) {
            Some(last) => last == *now,
            None => was.is_none() || noted_at.is_some() && written_at(git_dir, name)? > noted_at,
        };
        if is_told && is_sound(objects, name, now) {
            return Ok(None);
        }
    }
    if let (None, Some(Ref { has_log: true, .. }), None) = (now, was, &log) {
        return Ok(None); // Git removes the log first, then the ref.
    }
    let path = git_dir.join(name);
    let shown = |oid: &Oid| oid.to_hex_with_len(12).to_string();
    let mut problem = match now {
        None => "this ref is missing, though git did not remove it".to_owned(),
        Some(Value::Direct(now)) => format!("this ref is at {}, and neither git's log nor the mirror knows why", shown(now)),
        Some(_) => "this ref is not what git writes".to_owned(),
    };
    let expected = expected(was, log.as_ref()).into_iter().flatten().find(|oid| is_sound(objects, name, oid));
    // A value that could be right is only replaced if both witnesses say the same.
    let is_plausible = matches!(now, Some(Value::Direct(now)) if is_sound(objects, name, now));
    let is_agreed = was.is_some_and(|was| log.as_ref().and_then(Log::last) == Some(was.oid));
    let cure = expected.filter(|_| !is_plausible || is_agreed);
    problem += &was.map_or(String::new(), |was| format!("; it was at {}", shown(&was.oid)));
    let remedy = match (&cure, was) {
        (Some(_), _) => HEALED.to_owned(),
        (None, Some(was)) => format!("move it back with 'git update-ref {name} {}', or, {ASK}", was.oid),
        (None, None) => format!("look at its log, '{}'; {ASK}", log_path(git_dir, name).display()),
    };
    let cure = cure.map(|oid| Cure::Ref { name: name.to_owned(), oid });
    Ok(Some(Deviation { path, offset: None, problem, remedy, stops: true, wanted: was.map(|was| was.oid), cure }))
}

/// Returns where a ref ought to be, the likeliest first: where its log ends, if the log goes on from what the mirror has; what the mirror has.
fn expected(was: Option<&Ref>, log: Option<&Log>) -> [Option<Oid>; 2] {
    let goes_on = |log: &&Log| was.is_none_or(|was| log.mentions(&was.oid));
    [log.filter(goes_on).and_then(Log::last), was.map(|was| was.oid)]
}

/// Lets through what a power cut explains: git does not sync its logs, so a ref may be ahead of its log, but only forward.
///
/// One that stands where another one belongs, which is elsewhere, may be that one's content in the wrong place, and is not let through.
fn settle_forward(found: &mut Vec<Deviation>, objects: &Objects, known: &Mirror, seen: &RefList, git_dir: &Path) {
    let is_at_home = |name: &String, known: &Ref| matches!(seen.refs.get(name), Some(Value::Direct(now)) if *now == known.oid);
    let taken: HashSet<Oid> =
        known.refs.iter().filter(|(name, known)| !is_at_home(name, known)).map(|(_, known)| known.oid).collect();
    found.retain(|deviation| {
        let Some(name) = name_in(git_dir, &deviation.path) else { return true };
        let (Some(was), Some(Value::Direct(now))) = (known.refs.get(&name), seen.refs.get(&name)) else { return true };
        taken.contains(now) || !(descends(objects, now, &was.oid) || renews(objects, &name, now, &was.oid))
    });
}

fn name_in(git_dir: &Path, path: &Path) -> Option<String> {
    path.strip_prefix(git_dir).ok()?.to_str().map(str::to_owned)
}

/// Commits that are looked at before a forward move is given up.
const MAX_WALK: usize = 10_000;

fn descends(objects: &Objects, from: &Oid, ancestor: &Oid) -> bool {
    let (mut queue, mut visited) = (std::collections::VecDeque::from([*from]), HashSet::new());
    while let Some(oid) = queue.pop_front() {
        if oid == *ancestor {
            return true;
        }
        if visited.len() < MAX_WALK && visited.insert(oid) {
            queue.extend(objects.commit(&oid).map(|commit| commit.parents).unwrap_or_default());
        }
    }
    false
}

/// Says whether a host may have written `now` instead of `was` as what it tells of itself: such a record has no history, and is not older.
fn renews(objects: &Objects, name: &str, now: &Oid, was: &Oid) -> bool {
    let (Ok(now), Ok(was)) = (objects.commit(now), objects.commit(was)) else { return false };
    let is_record = [HOLDERS, REPORTS].iter().any(|records| name.starts_with(records));
    is_record && now.parents.is_empty() && was.parents.is_empty() && now.committer.seconds >= was.committer.seconds
}

fn is_sound(objects: &Objects, name: &str, oid: &Oid) -> bool {
    match name.starts_with("refs/heads/") {
        true => objects.commit(oid).is_ok(),
        false => objects.contains(oid),
    }
}

impl Git {
    /// Puts back what `deviations` know the right state of; what stood there moves to `quarantine` in the state directory `state`.
    ///
    /// The caller holds the instance's lock. A run that was cut short is repeated by the next one.
    pub fn put_back(git_dir: &Path, state: &Path, deviations: &[Deviation], mirror: Option<&Mirror>) -> Result<()> {
        let is_packed_lost = deviations.iter().any(|deviation| deviation.cure == Some(Cure::Packed));
        let put_aside = |name: &str| put_aside(&git_dir.join(name), state, name);
        let mut refs: BTreeMap<&str, Oid> = BTreeMap::new();
        for deviation in deviations {
            match &deviation.cure {
                Some(Cure::File { name, content }) => {
                    put_aside(name)?;
                    durable::publish(&git_dir.join(name), content, 0o600)?;
                }
                Some(Cure::Ref { name, oid }) => {
                    put_aside(name)?;
                    refs.insert(name, *oid);
                }
                Some(Cure::Packed) => put_aside("packed-refs")?,
                None => (),
            }
        }
        let logged = if is_packed_lost { names_of_logs(git_dir)? } else { BTreeSet::new() };
        if is_packed_lost {
            // Whatever stood there and is not loose would be gone.
            let known = mirror.map(|mirror| &mirror.refs);
            for name in known.into_iter().flat_map(BTreeMap::keys).chain(&logged) {
                let log = Log::read(git_dir, name)?;
                let was = known.and_then(|refs| refs.get(name));
                let oid = expected(was, log.as_ref()).into_iter().flatten().next();
                if let Some(oid) = oid.filter(|_| !durable::is_file(&git_dir.join(name))) {
                    refs.entry(name).or_insert(oid);
                }
            }
        }
        if refs.is_empty() {
            return durable::sync_filesystem(git_dir);
        }
        let commands: String = refs.iter().map(|(name, oid)| format!("update {name} {oid}\n")).collect();
        let (git, _) = Self::open(git_dir)?;
        let git = git.with_identity(healer());
        git.run_with_input(&["update-ref", "--no-deref", "-m", "put back by git-devops", "--stdin"], commands.as_bytes())
            .context(|| "cannot put back refs")?;
        durable::sync_filesystem(git_dir)
    }
}

fn healer() -> Identity {
    Identity { name: "git-devops".into(), email: "git-devops@localhost".into() }
}

/// Moves a damaged file to `quarantine` in the state directory, if it is there.
fn put_aside(path: &Path, state: &Path, name: &str) -> Result<()> {
    if !durable::is_file(path) {
        return Ok(());
    }
    let quarantine = state.join("quarantine");
    durable::create_dir_all(&quarantine, 0o700)?;
    durable::move_to(path, &quarantine.join(name.replace('/', "-")))
}

/// Names logs that are not what git writes.
pub fn examine_logs(git_dir: &Path) -> Result<Vec<Deviation>> {
    let mut found = Vec::new();
    for name in names_of_logs(git_dir)? {
        let Some(log) = Log::read(git_dir, &name)? else { continue };
        if !log.is_damaged {
            continue; // One that ends elsewhere is what a run leaves that was killed, or cut off, between log and ref.
        }
        let problem = "this log of a ref has a line that git does not write".to_owned();
        let remedy = "nothing needs it but 'git reflog'; 'gdo check --repair' cuts it out".to_owned();
        found.push(Deviation {
            path: log_path(git_dir, &name),
            offset: None,
            problem,
            remedy,
            stops: false,
            wanted: None,
            cure: None,
        });
    }
    Ok(found)
}

/// Cuts out of all logs what git does not write and what names an object that is not among `objects`; each log as it was goes into quarantine.
pub fn mend_logs(git_dir: &Path, objects: &Objects, state: &Path) -> Result<()> {
    objects.refresh();
    let names = names_of_logs(git_dir)?;
    for name in names.iter().map(String::as_str).chain(["HEAD"]) {
        let Some(sound) = sound_lines(git_dir, name, &|oid| objects.contains(oid))? else { continue };
        let path = log_path(git_dir, name);
        put_aside(&path, state, &format!("logs/{name}"))?;
        if !sound.is_empty() {
            durable::publish(&path, &sound, 0o600)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    const EXAMPLE: &str = include_str!("../../../docs/formats/mirror.md");

    #[test]
    fn the_page_shows_what_is_written_and_damage_of_any_bit_is_found() {
        let copy = |text: &str| Copy { mtime: (1_795_359_152, 631_082_801), content: text.into() };
        let oid = Oid::from_hex(b"4b825dc642cb6eb9a060e54bf8d69288fbee4904").unwrap();
        let mirror = Mirror {
            files: [("HEAD", "ref: refs/heads/main\n"), ("config", "[core]\n\tbare = true")]
                .map(|(name, text)| (name.into(), copy(text)))
                .into(),
            packed: Some(Packed { mtime: (1_795_359_153, 5), hash: blake3::hash(b"") }),
            refs: [
                ("refs/heads/main".to_owned(), Ref { oid, has_log: true }),
                ("refs/tags/v1".to_owned(), Ref { oid, has_log: false }),
            ]
            .into(),
        };
        let text = mirror.encode();
        assert_eq!(Mirror::decode(&text).unwrap(), mirror);
        let shown = EXAMPLE.split("```\n").nth(1).unwrap();
        assert_eq!(shown, String::from_utf8(text.clone()).unwrap());
        for bit in 0..8 * text.len() {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            Mirror::decode(&flipped).unwrap_err();
        }
        for len in 0..text.len() {
            Mirror::decode(&text[..len]).unwrap_err();
        }
    }

    /// A repository with two commits on `main`, the first also on `side` and tagged, everything in its mirror.
    struct Scratch {
        dir: tempfile::TempDir,
        git: Git,
        commits: [Oid; 3],
    }

    impl Scratch {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let git = Git::init(&dir.path().join("repo"), "main").unwrap().with_identity(healer());
            let tree = git.run(&["mktree"]).unwrap();
            let tree = String::from_utf8(tree).unwrap();
            let mut parent: Vec<String> = Vec::new();
            let commits = ["one", "two", "three"].map(|message| {
                let mut args = vec!["commit-tree".to_owned(), "-m".into(), message.into(), tree.trim().into()];
                args.extend(parent.iter().cloned());
                let oid = String::from_utf8(git.run(&args).unwrap()).unwrap().trim().to_owned();
                parent = vec!["-p".into(), oid.clone()];
                Oid::from_hex(oid.as_bytes()).unwrap()
            });
            let scratch = Self { dir, git, commits };
            scratch.git("update-ref refs/heads/main 1");
            scratch.git("update-ref refs/heads/side 1");
            scratch.git("update-ref refs/tags/v1 1");
            scratch.git("pack-refs --all");
            scratch.git("update-ref refs/heads/main 2");
            std::fs::create_dir(scratch.state()).unwrap();
            // Times of the file system tick every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            Mirror::of(scratch.git.git_dir()).unwrap().write(&scratch.state()).unwrap();
            scratch
        }

        fn state(&self) -> PathBuf {
            self.dir.path().join("state")
        }

        /// Runs git, or gives a file a time long ago: `cp -p`, or a clock that was set back.
        fn act(&self, words: &str) {
            let Some(name) = words.strip_prefix("age ") else { return self.git(words) };
            let file = fs::File::options().write(true).open(self.git.git_dir().join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }

        /// Runs git; a number alone stands for the commit.
        fn git(&self, words: &str) {
            let word = |word: &str| match word.parse::<usize>() {
                Ok(n) => self.commits[n - 1].to_string(),
                Err(_) => word.to_owned(),
            };
            self.git.run(&words.split(' ').map(word).collect::<Vec<_>>()).unwrap();
        }

        /// Does to a file what a disk could do: its time stays.
        fn rot(&self, name: &str, bytes: &[u8]) {
            let path = self.git.git_dir().join(name);
            let mtime = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, bytes).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
        }

        fn examine(&self) -> Vec<Deviation> {
            let mirror = Mirror::read(&self.state()).unwrap();
            let mut found = examine_files(self.git.git_dir(), mirror.as_ref().unwrap()).unwrap();
            found.extend(
                examine_refs(
                    self.git.git_dir(),
                    &Objects::open(self.git.git_dir()).unwrap(),
                    mirror.as_ref(),
                    Mirror::noted_at(&self.state()).unwrap(),
                )
                .unwrap(),
            );
            found
        }

        fn read(&self, name: &str) -> Option<Oid> {
            self.git.read_ref(name).unwrap()
        }
    }

    #[test]
    fn what_people_do_with_stock_git_is_no_damage() {
        let acts: &[&[&str]] = &[
            &["update-ref refs/heads/main 3"],
            &["update-ref refs/heads/main 1"],
            &["branch new main"],
            &["branch -D side"],
            &["branch -m side other"],
            &["tag -d v1"],
            &["tag v2 main"],
            &["tag -f v1 main"],
            &["pack-refs --all"],
            &["symbolic-ref HEAD refs/heads/side"],
            &["update-ref refs/heads/main 3", "pack-refs --all", "branch -f side main"],
            &["gc -q"],
            &["config --file config user.name Ann"],
            &["config --file config user.name Ann", "age config"],
            &["symbolic-ref HEAD refs/heads/side", "age HEAD"],
            &["pack-refs --all", "age packed-refs"],
            &["update-ref refs/heads/main 1", "reflog expire --expire=now --all"],
        ];
        for act in acts {
            let scratch = Scratch::new();
            std::thread::sleep(std::time::Duration::from_millis(20));
            act.iter().for_each(|words| scratch.act(words));
            assert_eq!(scratch.examine(), [], "{act:?}");
        }
    }

    #[test]
    fn a_ref_ahead_of_its_log_is_a_power_cut_and_one_behind_it_is_rot() {
        let scratch = Scratch::new();
        let log = scratch.git.git_dir().join("logs/refs/heads/main");
        let before = fs::read(&log).unwrap();
        scratch.git("update-ref refs/heads/main 3");
        fs::write(&log, before).unwrap();
        assert_eq!(scratch.examine(), [], "the log was not synced");
        let [one, two, _] = scratch.commits;
        scratch.rot("refs/heads/main", format!("{one}\n").as_bytes());
        let found = scratch.examine();
        assert!(found.len() == 1 && found[0].is_curable(), "{found:?}");
        Git::put_back(scratch.git.git_dir(), &scratch.state(), &found, None).unwrap();
        assert_eq!(scratch.read("refs/heads/main"), Some(two));
    }

    #[test]
    fn a_record_ahead_of_its_log_is_a_power_cut_if_it_is_not_older() {
        let scratch = Scratch::new();
        let record = |seconds: i64| {
            let who = crate::git::Signature::new(&Identity { name: "a".into(), email: "b".into() }, seconds, 0);
            let data = crate::git::CommitData {
                tree: crate::git::empty_tree(),
                parents: Vec::new(),
                author: who.clone(),
                committer: who,
                message: b"report\n".to_vec(),
            };
            let text = data.encode().unwrap();
            let oid = scratch.git.run_with_input(&["hash-object", "-t", "commit", "-w", "--stdin"], &text).unwrap();
            String::from_utf8(oid).unwrap().trim().to_owned()
        };
        let [old, middle, new] = [record(1), record(2), record(3)];
        let records = "refs/devops/reports/0123";
        for (name, to, is_let_through) in [(records, &new, true), (records, &old, false), ("refs/tags/record", &new, false)] {
            scratch.git(&format!("update-ref {name} {middle}"));
            Mirror::of(scratch.git.git_dir()).unwrap().write(&scratch.state()).unwrap();
            let log = scratch.git.git_dir().join("logs").join(name);
            let before = fs::read(&log).unwrap();
            scratch.git(&format!("update-ref {name} {to}"));
            fs::write(&log, before).unwrap();
            assert_eq!(scratch.examine().is_empty(), is_let_through, "{name} {to}");
            scratch.git(&format!("update-ref -d {name}"));
        }
    }

    #[test]
    fn rot_is_found_and_put_back() {
        type Damage = fn(&Scratch);

        let damages: &[(&str, Damage)] = &[
            ("HEAD", |s| s.rot("HEAD", b"ref: refs/heads/maio\n")),
            ("HEAD", |s| s.rot("HEAD", b"ref: refs/heads/side\n")),
            ("HEAD", |s| s.rot("HEAD", b"")),
            ("HEAD", |s| fs::remove_file(s.git.git_dir().join("HEAD")).unwrap()),
            ("config", |s| s.rot("config", b"[core]\n\tbare = false\n")),
            ("config", |s| fs::remove_file(s.git.git_dir().join("config")).unwrap()),
            ("info/attributes", |s| s.rot("info/attributes", b"* text\n")),
            ("refs/heads/main", |s| s.rot("refs/heads/main", format!("{}\n", s.commits[0]).as_bytes())),
            ("refs/heads/main", |s| s.rot("refs/heads/main", b"0123456789012345678901234567890123456789\n")),
            ("refs/heads/main", |s| s.rot("refs/heads/main", b"zzz")),
            ("refs/heads/main", |s| s.rot("refs/heads/main", format!("{}\n", s.commits[1]).to_uppercase().as_bytes())),
            ("refs/heads/main", |s| fs::remove_file(s.git.git_dir().join("refs/heads/main")).unwrap()),
            ("packed-refs", |s| s.rot("packed-refs", b"")),
            ("packed-refs", |s| s.rot("packed-refs", b"nonsense\n")),
            ("refs/heads/side", |s| fs::remove_file(s.git.git_dir().join("packed-refs")).unwrap()),
        ];
        for (n, (name, damage)) in damages.iter().enumerate() {
            let scratch = Scratch::new();
            let good = Mirror::read(&scratch.state()).unwrap();
            damage(&scratch);
            let git_dir = scratch.git.git_dir();
            let mut healed = examine_files(git_dir, good.as_ref().unwrap()).unwrap();
            Git::put_back(git_dir, &scratch.state(), &healed, good.as_ref()).unwrap();
            let objects = Objects::open(git_dir).unwrap();
            let found = examine_refs(git_dir, &objects, good.as_ref(), Mirror::noted_at(&scratch.state()).unwrap()).unwrap();
            assert!(found.iter().all(Deviation::is_curable), "{n}: {found:?}");
            Git::put_back(git_dir, &scratch.state(), &found, good.as_ref()).unwrap();
            healed.extend(found);
            assert!(healed.iter().any(|found| found.path == git_dir.join(name)), "{n}: {healed:?}");
            let (now, good) = (Mirror::of(git_dir).unwrap(), good.unwrap());
            assert_eq!(now.files["HEAD"].content, good.files["HEAD"].content, "{n}");
            assert_eq!(now.files["config"].content, good.files["config"].content, "{n}");
            assert_eq!(now.refs, good.refs, "{n}");
            assert!(
                Command::new("git").arg("--git-dir").arg(git_dir).args(["fsck", "--strict"]).status().unwrap().success(),
                "{n}"
            );
        }
    }

    #[test]
    fn swapped_refs_go_back_and_what_only_a_person_can_know_is_asked() {
        let scratch = Scratch::new();
        let [one, two, _] = scratch.commits;
        scratch.git("update-ref refs/heads/loose 1");
        Mirror::of(scratch.git.git_dir()).unwrap().write(&scratch.state()).unwrap();
        scratch.rot("refs/heads/main", format!("{one}\n").as_bytes());
        scratch.rot("refs/heads/loose", format!("{two}\n").as_bytes());
        let found = scratch.examine();
        assert!(found.len() == 2 && found.iter().all(Deviation::is_curable), "{found:?}");
        // A log that knows nothing of it leaves two words against each other.
        fs::write(scratch.git.git_dir().join("logs/refs/heads/main"), "").unwrap();
        let found = scratch.examine();
        let main = found.iter().find(|found| found.path.ends_with("main")).unwrap();
        assert!(main.stops && !main.is_curable() && main.remedy.contains("--accept"), "{main:?}");
    }
}
