//! One entry as text: a command or a reboot. Format: `docs/formats/journal.md`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Context, Error, Kind as ErrorKind, Result};
use crate::metadata::{escaped, unescaped};
use crate::safepath::check_path;

/// No entry is longer than this, in bytes.
pub const MAX_ENTRY: usize = 4 << 20;
/// Where entries stand in a commit.
pub const JOURNAL: &[u8] = b".git-devops/journal/";
/// Where inputs stand in a commit, by entry.
pub const INPUT: &[u8] = b".git-devops/input/";
/// Where handlers stand in a commit.
pub const HANDLER: &[u8] = b".git-devops/handler/";
/// What the name of an entry's file ends with.
const SUFFIX: &[u8] = b".entry";

const HEAD: &[u8] = b"git-devops entry 1\n";
const HEAD_OF_ANY: &[u8] = b"git-devops entry ";
/// Seconds that a command may take where nothing else is said.
pub const DEFAULT_TIMEOUT: u32 = 3600;
const MAX_TIMEOUT: u32 = 604_800;
const DEFAULT_UMASK: u16 = 0o022;
/// What stands for the directory of the inputs.
pub const IN: &str = "${in}";

/// The name of an entry: 26 characters, ordered by the time of making.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(String);

const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl EntryId {
    /// Returns a new one, made `millis` milliseconds after the beginning of 1970, out of 80 `random` bits.
    pub fn new(millis: u64, random: [u8; 10]) -> Self {
        let time = (0..10).rev().map(|at| (millis >> (5 * at)) as usize & 31);
        let bits = random.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
        let rest = (0..16).rev().map(|at| (bits >> (5 * at)) as usize & 31);
        Self(time.chain(rest).map(|digit| DIGITS[digit] as char).collect())
    }

    /// Returns when it was made, in milliseconds since 1970.
    pub fn millis(&self) -> u64 {
        let digit = |c: u8| DIGITS.iter().position(|digit| *digit == c).unwrap_or(0) as u64;
        self.0.bytes().take(10).fold(0, |millis, c| millis << 5 | digit(c))
    }

    /// Returns where the entry stands in a commit.
    pub fn path(&self) -> Vec<u8> {
        [JOURNAL, self.0.as_bytes(), SUFFIX].concat()
    }

    /// Returns where its input `name` stands in a commit.
    pub fn input_path(&self, name: &str) -> Vec<u8> {
        [INPUT, self.0.as_bytes(), b"/", name.as_bytes()].concat()
    }

    /// Returns the entry whose place in a commit is `path`; what else lies in the journal is refused.
    pub fn of_path(path: &[u8]) -> Option<Result<Self>> {
        let name = path.strip_prefix(JOURNAL)?;
        let id = name.strip_suffix(SUFFIX).and_then(|id| std::str::from_utf8(id).ok());
        let wrong = || Error::new(ErrorKind::Refused, format!("'{}' in the journal is no entry", name.escape_ascii()));
        Some(id.ok_or_else(wrong).and_then(|id| id.parse().map_err(|_| wrong())))
    }
}

impl FromStr for EntryId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.len() == 26 && text.bytes().all(|b| DIGITS.contains(&b)) {
            true => Ok(Self(text.to_owned())),
            false => Err(Error::new(ErrorKind::Usage, format!("'{}' is not the id of an entry", text.escape_debug()))),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an input: letters, digits, `.`, `_`, `+`, `~` and `-`, not beginning with a dot or a dash, at most 200.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Returns its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._+~-".contains(&b);
        match (1..=200).contains(&text.len()) && text.bytes().all(is_plain) && !text.starts_with(['.', '-']) {
            true => Ok(Self(text.to_owned())),
            false => Err(Error::new(
                ErrorKind::Usage,
                format!("'{}' is no name: it has letters, digits, '.', '_', '+', '~' and '-'", text.escape_debug()),
            )),
        }
    }
}

/// The name of a handler, as a commit and the attribute `handler=NAME` have it: up to 64 of a-z, 0-9 and `-`, which is not the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandlerName(String);

impl HandlerName {
    /// Returns its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns where the handler stands in a commit.
    pub fn path(&self) -> Vec<u8> {
        [HANDLER, self.0.as_bytes()].concat()
    }
}

impl FromStr for HandlerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let is_name =
            text.len() <= 64 && text.bytes().next().is_some_and(is_word) && text.bytes().all(|b| is_word(b) || b == b'-');
        match is_name {
            true => Ok(Self(text.to_owned())),
            false => Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "'{}' is not the name of a handler: up to 64 of a-z, 0-9 and '-', which is not the first",
                    text.escape_debug()
                ),
            )),
        }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command.
    Exec,
    /// The machine starts anew, and what follows waits for that.
    Reboot,
    /// A command that runs after certain files were changed.
    Handler,
}

/// When an entry runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the files of its commit are laid down.
    Before,
    /// After that.
    After,
}

/// Program and arguments.
pub type Words = Vec<Vec<u8>>;

/// A command, a reboot or a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// When it runs.
    pub when: When,
    /// What runs; empty for a reboot.
    pub run: Words,
    /// Where, as an absolute path in the root.
    pub cwd: Vec<u8>,
    /// As whom; `None`: as whoever replays.
    pub user: Option<String>,
    /// Permissions that new files do not get.
    pub umask: u16,
    /// Its environment, ascending by name.
    pub env: Vec<(String, Vec<u8>)>,
    /// Its inputs, ascending.
    pub inputs: Vec<Name>,
    /// Not needed if this succeeds.
    pub unless: Option<Words>,
    /// Not needed if this fails.
    pub onlyif: Option<Words>,
    /// Not needed if this is there.
    pub creates: Option<Vec<u8>>,
    /// Whether it may be run again where nobody knows whether it ran.
    pub is_idempotent: bool,
    /// How long it may take, in seconds.
    pub timeout: u32,
    /// Exit codes that count as success, ascending.
    pub ok: Vec<u8>,
    /// What takes it back.
    pub undo: Option<Words>,
    /// Owned paths that it makes what the commit says, ascending.
    pub effects: Vec<Vec<u8>>,
}

impl Entry {
    /// Returns an entry of `kind` that runs `run`, with the default of all else.
    pub fn new(kind: Kind, run: Words) -> Self {
        Self {
            kind,
            when: When::After,
            run,
            cwd: b"/".to_vec(),
            user: None,
            umask: DEFAULT_UMASK,
            env: Vec::new(),
            inputs: Vec::new(),
            unless: None,
            onlyif: None,
            creates: None,
            is_idempotent: false,
            timeout: DEFAULT_TIMEOUT,
            ok: vec![0],
            undo: None,
            effects: Vec::new(),
        }
    }

    /// Returns its text.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = HEAD.to_vec();
        let mut line = |key: &str, value: &[u8]| text.extend([key.as_bytes(), b" ", value, b"\n"].concat());
        let kind: &[u8] = match self.kind {
            Kind::Exec => b"exec",
            Kind::Reboot => b"reboot",
            Kind::Handler => b"handler",
        };
        line("kind", kind);
        if self.when == When::Before {
            line("when", b"before");
        }
        if !self.run.is_empty() {
            line("run", &joined(&self.run));
        }
        if self.cwd != b"/" {
            line("cwd", &escaped(&self.cwd));
        }
        if let Some(user) = &self.user {
            line("user", &escaped(user.as_bytes()));
        }
        if self.umask != DEFAULT_UMASK {
            line("umask", format!("{:03o}", self.umask).as_bytes());
        }
        for (name, value) in &self.env {
            line("env", &[name.as_bytes(), b"=", &escaped(value)].concat());
        }
        self.inputs.iter().for_each(|input| line("input", input.0.as_bytes()));
        for (key, words) in [("unless", &self.unless), ("onlyif", &self.onlyif)] {
            words.iter().for_each(|words| line(key, &joined(words)));
        }
        self.creates.iter().for_each(|path| line("creates", &escaped(path)));
        if self.is_idempotent {
            line("idempotent", b"yes");
        }
        if self.timeout != DEFAULT_TIMEOUT {
            line("timeout", self.timeout.to_string().as_bytes());
        }
        if self.ok != [0] {
            line("ok", self.ok.iter().map(u8::to_string).collect::<Vec<_>>().join(",").as_bytes());
        }
        self.undo.iter().for_each(|words| line("undo", &joined(words)));
        self.effects.iter().for_each(|path| line("effect", &escaped(path)));
        text
    }

    /// Reads an entry; what [`Entry::encode`] would not have written is refused.
    pub fn decode(text: &[u8]) -> Result<Self> {
        if text.len() > MAX_ENTRY {
            return Err(wrong("it is longer than 4 MiB"));
        }
        let Some(lines) = text.strip_prefix(HEAD) else {
            return Err(match text.starts_with(HEAD_OF_ANY) {
                true => Error::new(ErrorKind::Unsupported, "the entry has a format newer than 1; use a newer program"),
                false => wrong("this is not an entry of a journal"),
            });
        };
        let mut entry = Self::new(Kind::Exec, Vec::new());
        for (at, line) in lines.split_inclusive(|&b| b == b'\n').enumerate() {
            entry.take_line(line).context(|| format!("the entry has a bad line {}", at + 2))?;
        }
        entry.check()?;
        // What says a default, says something twice, or is out of order, comes out otherwise.
        match entry.encode() == text {
            true => Ok(entry),
            false => Err(wrong("the entry is not written in the one way that there is")),
        }
    }

    fn take_line(&mut self, line: &[u8]) -> Result<()> {
        let line = line.strip_suffix(b"\n").ok_or_else(|| wrong("it is cut short"))?;
        let at = line.iter().position(|&b| b == b' ').ok_or_else(|| wrong("it has no value"))?;
        let (key, value) = (&line[..at], &line[at + 1..]);
        let text = || std::str::from_utf8(value).map_err(|_| wrong("its value is no text"));
        match key {
            b"kind" => {
                self.kind = match value {
                    b"exec" => Kind::Exec,
                    b"reboot" => Kind::Reboot,
                    b"handler" => Kind::Handler,
                    _ => return Err(Error::new(ErrorKind::Unsupported, "an unknown kind; use a newer program")),
                }
            }
            b"when" if value == b"before" => self.when = When::Before,
            b"run" => self.run = words(value)?,
            b"cwd" => self.cwd = unescaped(value)?,
            b"user" => self.user = Some(String::from_utf8(unescaped(value)?).map_err(|_| wrong("its user is no text"))?),
            b"umask" => self.umask = u16::from_str_radix(text()?, 8).map_err(|_| wrong("its umask is no number"))?,
            b"env" => {
                let at = value.iter().position(|&b| b == b'=').ok_or_else(|| wrong("it has no '='"))?;
                let name = std::str::from_utf8(&value[..at]).map_err(|_| wrong("its name is no text"))?;
                self.env.push((name.to_owned(), unescaped(&value[at + 1..])?));
            }
            b"input" => self.inputs.push(text()?.parse()?),
            b"unless" => self.unless = Some(words(value)?),
            b"onlyif" => self.onlyif = Some(words(value)?),
            b"creates" => self.creates = Some(unescaped(value)?),
            b"idempotent" if value == b"yes" => self.is_idempotent = true,
            b"timeout" => self.timeout = text()?.parse().map_err(|_| wrong("its timeout is no number"))?,
            b"ok" => {
                let codes = text()?.split(',').map(str::parse).collect::<std::result::Result<_, _>>();
                self.ok = codes.map_err(|_| wrong("these are no exit codes"))?;
            }
            b"undo" => self.undo = Some(words(value)?),
            b"effect" => self.effects.push(unescaped(value)?),
            _ => return Err(wrong("an unknown key or value")),
        }
        Ok(())
    }

    /// Fails unless the entry can be what it says; a writer asks that before it writes.
    pub fn check(&self) -> Result<()> {
        let is_ascending = |ok: bool| if ok { Ok(()) } else { Err(wrong("a list is out of order or has something twice")) };
        is_ascending(self.env.is_sorted_by(|a, b| a.0 < b.0))?;
        is_ascending(self.inputs.is_sorted_by(|a, b| a < b))?;
        is_ascending(self.effects.is_sorted_by(|a, b| a < b))?;
        is_ascending(self.ok.is_sorted_by(|a, b| a < b) && !self.ok.is_empty())?;
        let all_words = [Some(&self.run), self.unless.as_ref(), self.onlyif.as_ref(), self.undo.as_ref()];
        if all_words.into_iter().flatten().flatten().any(|word| word.contains(&0)) {
            return Err(wrong("a word has a NUL byte"));
        }
        if (self.kind == Kind::Reboot) != self.run.is_empty() || [&self.unless, &self.onlyif, &self.undo].iter().any(is_empty) {
            return Err(wrong("a command is missing, or there is one where none can be"));
        }
        if self.run.first().is_some_and(Vec::is_empty) {
            return Err(wrong("the name of the program is empty"));
        }
        for path in [Some(&self.cwd), self.creates.as_ref()].into_iter().flatten() {
            let relative = path.strip_prefix(b"/").ok_or_else(|| wrong("a path is not absolute"))?;
            if !relative.is_empty() {
                check_path(relative)?;
            }
        }
        self.effects.iter().filter(|path| !path.is_empty()).try_for_each(|path| check_path(path))?;
        let is_name = |name: &str| {
            let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            is_word && !name.is_empty() && name.len() <= 255 && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        if !self.env.iter().all(|(name, value)| is_name(name) && !value.contains(&0)) {
            return Err(wrong("an environment variable has a name that is none, or a NUL byte"));
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.contains([':', '\0', '/'])) {
            return Err(wrong("its user has no name"));
        }
        match self.umask <= 0o777 && (1..=MAX_TIMEOUT).contains(&self.timeout) {
            true => Ok(()),
            false => Err(wrong("its umask or timeout is out of range")),
        }
    }

    /// Returns the command as a person would read it.
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::Reboot => "reboot".to_owned(),
            _ => self.run.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        }
    }
}

/// Returns a word as one writes it in a shell.
fn quoted(word: &[u8]) -> String {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_./:=,+@%${}".contains(b);
    let text = String::from_utf8_lossy(word);
    match !word.is_empty() && word.iter().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn is_empty(words: &&Option<Words>) -> bool {
    words.as_ref().is_some_and(Vec::is_empty)
}

fn joined(words: &Words) -> Vec<u8> {
    let word = |word: &Vec<u8>| if word.is_empty() { b"%".to_vec() } else { escaped(word) };
    words.iter().map(word).collect::<Vec<_>>().join(&b' ')
}

fn words(value: &[u8]) -> Result<Words> {
    value.split(|&b| b == b' ').map(|word| if word == b"%" { Ok(Vec::new()) } else { unescaped(word) }).collect()
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Refused, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Entry {
        Entry {
            when: When::Before,
            cwd: b"/srv/a b".to_vec(),
            user: Some("www".into()),
            umask: 0o077,
            env: vec![("A".into(), b"1 2".to_vec()), ("B".into(), vec![])],
            inputs: vec!["foo.deb".parse().unwrap()],
            unless: Some(vec![b"test".to_vec(), b"-e".to_vec(), b"/x".to_vec()]),
            creates: Some(b"/x".to_vec()),
            is_idempotent: true,
            timeout: 10,
            ok: vec![0, 3],
            undo: Some(vec![b"rm".to_vec(), b"/x".to_vec()]),
            effects: vec![b"etc/a".to_vec(), b"etc/b c".to_vec()],
            ..Entry::new(Kind::Exec, vec![b"sh".to_vec(), b"-c".to_vec(), b"echo x >> /x".to_vec(), vec![]])
        }
    }

    #[test]
    fn an_entry_comes_back() {
        for entry in [example(), Entry::new(Kind::Reboot, vec![]), Entry::new(Kind::Handler, vec![b"true".to_vec()])] {
            assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        }
        let text = String::from_utf8(example().encode()).unwrap();
        assert!(text.contains("\nrun sh -c echo%20x%20>>%20/x %\n"), "{text}");
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        let text = String::from_utf8(example().encode()).unwrap();
        for (from, to) in [
            ("kind exec", "kind reboot"),
            ("kind exec", "kind magic"),
            ("timeout 10", "timeout 010"),
            ("timeout 10", "timeout 3600"),
            ("timeout 10", "timeout 0"),
            ("umask 077", "umask 77"),
            ("env A=1%202\nenv B=\n", "env B=\nenv A=1%202\n"),
            ("env B=", "env B C="),
            ("ok 0,3", "ok 3,0"),
            ("input foo.deb", "input ../foo"),
            ("input foo.deb\n", "input foo.deb\ninput foo.deb\n"),
            ("cwd /srv", "cwd srv"),
            ("effect etc/a", "effect ../a"),
            ("undo rm", "undo  rm"),
            ("user www", "user root:root"),
            ("when before\n", "when before\nwhen before\n"),
            ("when before\n", "colour blue\n"),
            ("run sh", "run %00"),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(Entry::decode(text.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
        assert!(Entry::decode(&text.as_bytes()[..text.len() - 1]).is_err());
        assert_eq!(Entry::decode(b"git-devops entry 2\n").unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn ids_are_ordered_by_time_and_come_back() {
        let (a, b) = (EntryId::new(1_000, [255; 10]), EntryId::new(1_001, [0; 10]));
        assert!(a < b);
        assert_eq!(a.to_string(), "00000000z8zzzzzzzzzzzzzzzz");
        assert_eq!(EntryId::of_path(&a.path()).unwrap().unwrap(), a);
        assert!(EntryId::of_path(b".git-devops/journal/x.entry").unwrap().is_err());
        assert!(EntryId::of_path(b".git-devops/attributes").is_none());
    }
}
