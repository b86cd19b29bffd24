//! What is laid down for paths by pattern: whose they are, how they are checked, cut and merged, what follows when they change.
//!
//! Format: `docs/formats/attributes.md`. Stored in commits at `.git-devops/attributes`.

mod line;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gix_glob::pattern::{Case, Mode};
use gix_glob::{Pattern, wildmatch};

use super::Repo;
use super::scan::Staged;
use crate::chunk::ChunkerSpec;
use crate::error::{Context, Error, Kind, Result};
use crate::git::index::{CachedStat, Index};
use crate::git::name::{self, Stored};
use crate::git::object::FILE;
use crate::git::{NewIndex, ObjectKind, Oid, PackWriter};
use line::{Line, Setting, quoted, words};

/// Where the attributes stand in a commit.
pub const PATH: &[u8] = b".git-devops/attributes";

/// Bytes in an attributes file: what people write by hand is far below.
const MAX_TEXT: usize = 1 << 20;

/// Directories whose lines are remembered at a time.
const MAX_KNOWN: usize = 4096;

/// The lines of an attributes file; of several that hold for a path and say the same thing, the last one counts.
///
/// A line holds for what its pattern matches, and for everything below that.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    lines: Vec<Line>,
    /// Lines whose pattern is the whole path, or the name, of what it matches: found without a search.
    by_path: HashMap<Vec<u8>, Vec<usize>>,
    by_name: HashMap<Vec<u8>, Vec<usize>>,
    globs: Vec<usize>,
    /// Which lines hold in the directories that were asked about lately.
    known: Arc<Mutex<Known>>,
}

/// By directory, the numbers of the lines that hold in it.
type Known = HashMap<Vec<u8>, Arc<[usize]>>;

/// What the attributes lay down for one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whose content it is.
    pub ownership: Ownership,
    /// Changes by itself: no part of a fingerprint.
    pub is_volatile: bool,
    /// Made anew from other files: owned, not compared.
    pub is_derived: bool,
    /// Cannot be deleted, emptied, or become another type of file.
    pub is_protected: bool,
    /// A directory in which what is not owned is put aside.
    pub is_exact: bool,
    /// A local change is merged with a new version, line by line.
    pub merges: bool,
    /// The command that a new version must pass before it gets its name; `%s` stands for the file that has it.
    pub validate: Option<String>,
    /// What runs after it changed, by name.
    pub handlers: Vec<String>,
    /// May be written in place where it cannot be replaced.
    pub is_in_place: bool,
    /// Whether its time of change is kept.
    pub has_times: bool,
}

/// Whose the content of a path is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// The commit's.
    #[default]
    Own,
    /// Laid down where nothing is, and the host's from then on.
    Seed,
    /// Rendered for each host from a template.
    Env,
    /// The host's: never recorded, never written.
    Local,
    /// The commit's, encrypted to the hosts that may read it.
    Secret,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ownership: Ownership::Own,
            is_volatile: false,
            is_derived: false,
            is_protected: false,
            is_exact: false,
            merges: false,
            validate: None,
            handlers: Vec::new(),
            is_in_place: false,
            has_times: true,
        }
    }
}

impl Attributes {
    /// Reads an attributes file; an unknown key or a wrong value is refused with its line number.
    pub fn decode(text: &[u8]) -> Result<Self> {
        if text.len() > MAX_TEXT {
            return Err(Error::new(Kind::Usage, format!("attributes are longer than {MAX_TEXT} bytes")));
        }
        let mut attributes = Self::default();
        for (at, line) in text.split(|&b| b == b'\n').enumerate() {
            let what = || format!("attributes have a bad line {}", at + 1);
            let line = line.trim_ascii();
            if !line.is_empty() && !line.starts_with(b"#") {
                attributes.push(Line::decode(line).context(what)?);
            }
        }
        Ok(attributes)
    }

    fn push(&mut self, line: Line) {
        let position = self.lines.len();
        let Pattern { text, mode, first_wildcard_pos } = &line.pattern;
        match first_wildcard_pos {
            Some(_) => self.globs.push(position),
            None if is_for_names(*mode) => self.by_name.entry(text.to_vec()).or_default().push(position),
            None => self.by_path.entry(text.to_vec()).or_default().push(position),
        }
        self.lines.push(line);
    }

    /// Returns what is laid down for the file at `path`, relative to the work tree; also for a path where nothing is.
    pub fn policy(&self, path: &[u8]) -> Policy {
        self.policy_of(path, false)
    }

    /// Returns the same for a directory; the root has the empty path.
    pub fn policy_of_dir(&self, path: &[u8]) -> Policy {
        self.policy_of(path, true)
    }

    fn policy_of(&self, path: &[u8], is_dir: bool) -> Policy {
        let mut policy = Policy::default();
        for position in self.matching(path, is_dir) {
            self.lines[position].settings.iter().for_each(|setting| setting.apply(&mut policy));
        }
        // These have the time at which a host laid them down.
        policy.has_times &= !matches!(policy.ownership, Ownership::Env | Ownership::Secret);
        policy
    }

    /// Returns the chunker for the file at `path`, relative to the work tree; `default` where no line says.
    pub fn chunker(&self, path: &[u8], default: &ChunkerSpec) -> ChunkerSpec {
        let settings = self.matching(path, false).into_iter().rev().flat_map(|position| &self.lines[position].settings);
        let mut said = settings.filter_map(|setting| if let Setting::Chunker(spec) = setting { Some(*spec) } else { None });
        said.next().flatten().unwrap_or(*default)
    }

    /// Returns which lines hold for `path`, first to last.
    fn matching(&self, path: &[u8], is_dir: bool) -> Vec<usize> {
        if self.lines.is_empty() {
            return Vec::new();
        }
        let mut found = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => self.matching_dir(&path[..at]).to_vec(),
            None if path.is_empty() => Vec::new(),
            None => self.matching_dir(b"").to_vec(),
        };
        self.collect(path, is_dir, &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Returns which lines hold for the directory `dir`, and so for all below it; computed once for the many files of a directory.
    fn matching_dir(&self, dir: &[u8]) -> Arc<[usize]> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(dir) {
            return found.clone();
        }
        let mut found = Vec::new();
        if !dir.is_empty() {
            self.collect(b"", true, &mut found);
        }
        let above = dir.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &dir[..at]);
        above.chain([dir]).for_each(|dir| self.collect(dir, true, &mut found));
        let found: Arc<[usize]> = found.into();
        let mut known = known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(dir.to_vec(), found.clone());
        found
    }

    /// Adds the lines whose pattern matches `path` itself.
    fn collect(&self, path: &[u8], is_dir: bool, found: &mut Vec<usize>) {
        let slash = path.iter().rposition(|&b| b == b'/');
        let name = slash.map_or(path, |at| &path[at + 1..]);
        let exact = self.by_path.get(path).into_iter().chain(self.by_name.get(name)).flatten().copied();
        found.extend(exact.filter(|&position| is_dir || !self.lines[position].pattern.mode.contains(Mode::MUST_BE_DIR)));
        let options = wildmatch::Mode::NO_MATCH_SLASH_LITERAL;
        let is_match = |position: &usize| {
            let pattern = &self.lines[*position].pattern;
            pattern.matches_repo_relative_path(path.into(), slash.map(|at| at + 1), Some(is_dir), Case::Sensitive, options)
        };
        found.extend(self.globs.iter().copied().filter(is_match));
    }
}

/// Says whether a pattern is held against names, not paths: it has no slash, but perhaps at its end.
fn is_for_names(mode: Mode) -> bool {
    mode.contains(Mode::NO_SUB_DIR) && !mode.contains(Mode::ABSOLUTE)
}

/// Returns the text of the attributes that are staged.
pub fn text(repo: &Repo, index: &Index) -> Result<Vec<u8>> {
    index.lookup(PATH).map_or(Ok(Vec::new()), |position| stored_text(repo, &index.entry(position).oid))
}

/// Reads the attributes file `oid`; one that is longer than any may be is refused unread.
fn stored_text(repo: &Repo, oid: &Oid) -> Result<Vec<u8>> {
    repo.objects.short(oid, ObjectKind::Blob, MAX_TEXT as u64)
}

impl Repo {
    /// Returns the attributes that the index holds.
    pub fn attributes(&self, index: &Index) -> Result<Attributes> {
        self.attributes_at(index.lookup(PATH).map(|position| index.entry(position).oid))
    }

    /// Returns the attributes that a tree holds.
    pub fn attributes_of(&self, tree: &Oid) -> Result<Attributes> {
        self.attributes_at(self.blob_in(tree, PATH)?)
    }

    fn attributes_at(&self, blob: Option<Oid>) -> Result<Attributes> {
        let Some(oid) = blob else { return Ok(Attributes::default()) };
        stored_text(self, &oid).and_then(|text| Attributes::decode(&text)).context(|| "cannot read the attributes of the commit")
    }
}

/// Lays down `values` for `pattern` in the place of what was laid down for it before, staged for the next commit; returns the new text.
pub fn set(repo: &Repo, pattern: &str, values: &[String]) -> Result<Vec<u8>> {
    let _lock = repo.lock()?;
    let index = repo.index()?;
    let old = text(repo, &index)?;
    let old = String::from_utf8_lossy(&old);
    let is_other = |line: &&str| {
        !words(line.trim().as_bytes()).is_ok_and(|words| words.first().is_some_and(|word| word == pattern.as_bytes()))
    };
    let mut lines: Vec<String> = old.lines().filter(is_other).map(str::to_owned).collect();
    if !values.is_empty() {
        let words: Vec<String> = std::iter::once(pattern).chain(values.iter().map(String::as_str)).map(quoted).collect();
        let line = words.join(" ");
        Line::decode(line.as_bytes()).context(|| format!("cannot lay down '{}' for '{pattern}'", values.join(" ")))?;
        lines.push(line);
    }
    let new = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).collect::<Vec<_>>().concat();
    let (before, after) = (Attributes::decode(old.as_bytes())?, Attributes::decode(&new)?);
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let mut updates = vec![Staged { path: PATH.to_vec(), oid: pack.blob(&new)?, mode: FILE, stat: CachedStat::default() }];
    updates.extend(to_look_at_again(&index, &before, &after));
    let index = NewIndex::new(&index, updates, &[])?;
    let kept = pack.finish()?;
    repo.write_index(&index)?;
    crate::durable::sync_filesystem(&repo.places.git_dir)?;
    repo.let_go(kept)?;
    Ok(new)
}

/// Returns what is recorded of files and directories whose times begin or cease to be kept: the next look must not pass them over.
fn to_look_at_again<'a>(index: &'a Index, before: &'a Attributes, after: &'a Attributes) -> impl Iterator<Item = Staged> + 'a {
    let differs = |path: &[u8], is_dir| before.policy_of(path, is_dir).has_times != after.policy_of(path, is_dir).has_times;
    let is_meant = move |stored: &[u8]| match name::work_path(stored) {
        Stored::File(path) => differs(path, false),
        Stored::Alt(path) => differs(&path, false),
        Stored::Meta(path) => differs(&path, true),
        Stored::Other => false,
    };
    let entries = index.iter().filter(move |entry| is_meant(entry.path));
    entries.map(|entry| Staged { path: entry.path.to_vec(), oid: entry.oid, mode: entry.mode, stat: CachedStat::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_matches_counts() {
        let text = b"# disks\n*.img chunker=fixed:size=4194304\n\n/old/** chunker=rabin\nold/special.img chunker=gear\n";
        let attributes = Attributes::decode(text).unwrap();
        for (path, want) in [
            ("a.txt", "gear:min=16384,avg=65536,max=262144"),
            ("vm/a.img", "fixed:size=4194304"),
            ("old/a.img", "rabin:window=32,avg=65536,min=32768,max=131072"),
            ("old/special.img", "gear:min=16384,avg=65536,max=262144"),
        ] {
            assert_eq!(attributes.chunker(path.as_bytes(), &ChunkerSpec::default()).to_string(), want, "{path}");
        }
    }

    #[test]
    fn a_line_holds_for_what_it_matches_and_all_below() {
        let text = br#"
/ times=no
*.log volatile
/etc/ssh/ protect handler=ssh-reload validate="sshd -t -f %s"
/etc/ssh/sshd_config.d/ -protect handler=a,b
etc/ssh/moduli seed -validate
/etc/hostname env
cache/ local
"odd name" secret
*.service exact
"#;
        let attributes = Attributes::decode(text).unwrap();
        let untimed = Policy { has_times: false, ..Policy::default() };
        let ssh = Policy {
            is_protected: true,
            handlers: vec!["ssh-reload".into()],
            validate: Some("sshd -t -f %s".into()),
            ..untimed.clone()
        };
        let included = Policy { is_protected: false, handlers: vec!["a".into(), "b".into()], ..ssh.clone() };
        let moduli = Policy { ownership: Ownership::Seed, validate: None, ..ssh.clone() };
        let of = |ownership| Policy { ownership, ..untimed.clone() };
        for (path, want) in [
            ("etc", untimed.clone()),
            ("x/a.log", Policy { is_volatile: true, ..untimed.clone() }),
            ("etc/ssh", untimed.clone()), // a pattern with a slash at its end is about directories
            ("etc/ssh/sshd_config", ssh.clone()),
            ("x/etc/ssh/sshd_config", untimed.clone()),
            ("etc/ssh/sshd_config.d/a.conf", included),
            ("etc/ssh/moduli", moduli),
            ("etc/hostname", of(Ownership::Env)),
            ("srv/cache", untimed.clone()),
            ("srv/cache/deep/file", of(Ownership::Local)),
            ("x/odd name", of(Ownership::Secret)),
            ("etc/a.service/override.conf", Policy { is_exact: true, ..untimed.clone() }),
        ] {
            assert_eq!(attributes.policy(path.as_bytes()), want, "{path}");
        }
        assert_eq!(attributes.policy_of_dir(b"etc/ssh"), ssh);
        assert_eq!(attributes.policy_of_dir(b"srv/cache").ownership, Ownership::Local);
        assert_eq!(attributes.policy_of_dir(b""), untimed);
        assert_eq!(Attributes::default().policy(b"etc/ssh"), Policy::default());
    }

    #[test]
    fn of_own_seed_env_local_and_secret_the_last_line_counts() {
        let attributes = Attributes::decode(b"etc/** secret\netc/x* local\n/etc/xy own\n").unwrap();
        for (path, want) in [("etc/a", Ownership::Secret), ("etc/xa", Ownership::Local), ("etc/xy", Ownership::Own)] {
            assert_eq!(attributes.policy(path.as_bytes()).ownership, want, "{path}");
        }
    }

    #[test]
    fn a_line_that_is_not_understood_is_refused_with_its_number() {
        for text in [
            "*.img chunker=zip",
            "*.img colour=blue",
            "*.img chunker",
            "!x chunker=gear",
            "x seed env",
            "x protect -protect",
            "x -own",
            "x --protect",
            "x times=yes",
            "x times",
            "x merge=2way",
            "x inplace=no",
            "x validate=true",
            "x handler=",
            "x handler=a,,b",
            "x handler=a,a",
            "x handler=Reload",
            "x handler=-a",
            "x validate=\"a %s",
            "\"\" own",
        ] {
            let error = Attributes::decode(format!("\n{text}\n").as_bytes()).unwrap_err();
            assert!(error.to_string().contains("bad line 2"), "{text}: {error}");
        }
        assert!(Attributes::decode(&vec![b'\n'; MAX_TEXT + 1]).is_err());
    }
}
