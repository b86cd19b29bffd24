//! What was done on this host, in order: appended and synced line by line, each line vouching for all before it.
//!
//! Format: `docs/formats/host-log.md`.

use std::path::{Path, PathBuf};

use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::metadata::{escaped, unescaped};

const HEAD: &[u8] = b"git-devops log 1\n";
const HEAD_OF_ANY: &[u8] = b"git-devops log ";
/// Hexadecimal digits of the check at the end of a line.
const CHECK: usize = 32;
/// Longest value that is written, in bytes; what is longer is cut.
pub const MAX_VALUE: usize = 1000;

/// What to do about a log that is damaged.
pub const REMEDY: &str = "install this host anew, or let it follow its type from what it is: 'gdo adopt --begin TYPE' puts the log aside and begins another";

/// What is no prose, and never cut.
const WHOLE: [&str; 1] = ["handlers"];

/// A key with its value.
pub type Field<'a> = (&'a str, &'a str);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1 on.
    pub sequence: u64,
    /// When it was written, in seconds since 1970 by this host's clock.
    pub time: u64,
    /// What it tells of.
    pub kind: String,
    /// Keys and values, in order.
    pub fields: Vec<(String, String)>,
}

impl Line {
    /// Returns the value of `key`; empty if the line has none.
    pub fn get(&self, key: &str) -> &str {
        self.fields.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    fn body(&self) -> Vec<u8> {
        let mut body = format!("{} {} {}", self.sequence, self.time, self.kind).into_bytes();
        for (key, value) in &self.fields {
            body.extend([b" ", key.as_bytes(), b"=", &escaped(value.as_bytes())].concat());
        }
        body
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut words = body.split(|&b| b == b' ').map(|word| std::str::from_utf8(word).ok());
        let mut word = || words.next().flatten();
        let (sequence, time, kind) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?.to_owned());
        let mut fields = Vec::new();
        for word in words {
            let (key, value) = word?.split_once('=')?;
            fields.push((key.to_owned(), String::from_utf8(unescaped(value.as_bytes()).ok()?).ok()?));
        }
        let line = Self { sequence, time, kind, fields };
        (line.body() == body).then_some(line)
    }
}

/// The log of a host, read whole.
#[derive(Debug)]
pub struct HostLog {
    path: PathBuf,
    lines: Vec<Line>,
    /// The number of the first line.
    first: u64,
    /// The check of the last line, whole.
    last: [u8; 32],
    /// Where the last whole line ends.
    len: u64,
    is_torn: bool,
}

impl HostLog {
    /// Reads the log in the state directory `state`; one that is missing has no lines.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join("log");
        let what = || format!("cannot read the log of this host, '{}'", path.display());
        let bytes = durable::read_if_there(&path).context(what)?.unwrap_or_default();
        let mut log = Self { path: path.clone(), lines: Vec::new(), first: 1, last: [0; 32], len: 0, is_torn: false };
        log.take(&bytes).context(what)?;
        Ok(log)
    }

    /// Looks for damage in the log in the state directory `state`; returns its file, where what is sound in it ends, in bytes, and what is wrong.
    pub fn examine(state: &Path) -> Result<Option<(PathBuf, u64, String)>> {
        let path = state.join("log");
        let mut log = Self { path: path.clone(), lines: Vec::new(), first: 1, last: [0; 32], len: 0, is_torn: false };
        let what = || format!("cannot read the log of this host, '{}'", path.display());
        let bytes = durable::read_if_there(&path).context(what)?.unwrap_or_default();
        match log.take(&bytes) {
            Err(error) if error.kind() == Kind::Corrupt => {
                let problem = format!("line {} is damaged", log.lines.len() + 1);
                Ok(Some((path, log.len, problem)))
            }
            other => other.map(|()| None).context(what),
        }
    }

    /// Moves a damaged log to `quarantine` in the state directory `state`, and returns where it is then; `None` if it is not damaged.
    ///
    /// Who calls holds the lock of the instance.
    pub fn put_aside(state: &Path) -> Result<Option<PathBuf>> {
        let Some((path, ..)) = Self::examine(state)? else { return Ok(None) };
        let quarantine = state.join("quarantine");
        durable::create_dir_all(&quarantine, 0o700)?;
        let mut names = (1_u64..).map(|n| quarantine.join(format!("log-{n}")));
        let aside = names.find(|aside| !durable::is_there(aside)).expect("BUG: some name is free");
        durable::move_to(&path, &aside)?;
        Ok(Some(aside))
    }

    /// Returns the lines, oldest first.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Returns the number that the next line gets.
    pub fn next_sequence(&self) -> u64 {
        self.lines.last().map_or(self.first, |line| line.sequence + 1)
    }

    /// Lets the numbers of a log without lines begin behind `last`, which something that an earlier log told of still lies under.
    pub fn begin_behind(&mut self, last: u64) {
        if self.lines.is_empty() {
            self.first = last + 1;
        }
    }

    /// Appends a line; it is durable on return. Who calls holds the lock of the instance.
    pub fn append(&mut self, time: u64, kind: &str, fields: &[Field<'_>]) -> Result<&Line> {
        if self.is_torn {
            durable::truncate_unsynced(&self.path, self.len)?;
            self.is_torn = false;
        }
        if self.len == 0 {
            durable::publish(&self.path, HEAD, 0o600)?;
            self.len = HEAD.len() as u64;
        }
        let fields = fields
            .iter()
            .map(|(key, value)| ((*key).to_owned(), if WHOLE.contains(key) { value } else { cut(value) }.to_owned()))
            .collect();
        let line = Line { sequence: self.next_sequence(), time, kind: kind.to_owned(), fields };
        let body = line.body();
        let check = check(&self.last, &body);
        let text = [&body[..], b" ", &hex(&check)[..CHECK], b"\n"].concat();
        // Until the line is known to be whole on the disk, the next one begins where this one did.
        self.is_torn = true;
        durable::append(&self.path, &text)?;
        self.is_torn = false;
        self.len += text.len() as u64;
        self.last = check;
        self.lines.push(line);
        Ok(self.lines.last().expect("BUG: it was pushed"))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if HEAD.starts_with(bytes) && bytes.len() < HEAD.len() {
            self.is_torn = !bytes.is_empty();
            return Ok(());
        }
        let Some(lines) = bytes.strip_prefix(HEAD) else {
            // What holds by the rules of this version is of this version, whatever became of its number.
            let text = bytes.get(HEAD.len()..).and_then(|lines| lines.split(|&b| b == b'\n').next());
            let is_ours = text.is_some_and(|text| self.take_line(text).is_ok());
            self.lines.clear();
            return Err(match bytes.starts_with(HEAD_OF_ANY) && !is_ours {
                true => Error::new(Kind::Unsupported, "its format is newer than 1; use a newer program"),
                false => damaged(0),
            });
        };
        self.len = HEAD.len() as u64;
        let mut rest = lines;
        while !rest.is_empty() {
            let end = rest.iter().position(|&b| b == b'\n');
            let line = &rest[..end.unwrap_or(rest.len())];
            if end.is_none() && line.len() > 1 && self.take_line(&line[..line.len() - 1]).is_ok() {
                // The byte behind a whole line was its end.
                self.lines.pop();
                return Err(damaged(self.lines.len() + 1));
            }
            if end.is_none() || line.contains(&0) {
                // Only what was being written when the power went can look like this, and after it there is nothing.
                self.is_torn = end.is_none_or(|end| end + 1 == rest.len()) || rest.iter().all(|b| *b == 0);
                return if self.is_torn { Ok(()) } else { Err(damaged(self.lines.len() + 1)) };
            }
            self.take_line(line)?;
            self.len += line.len() as u64 + 1;
            rest = &rest[line.len() + 1..];
        }
        Ok(())
    }

    fn take_line(&mut self, text: &[u8]) -> Result<()> {
        let number = self.lines.len() + 1;
        // The first one has whatever number it has: no line was before it, or its check would say so.
        let expected = self.lines.last().map(|line| line.sequence + 1);
        let at = text.len().checked_sub(CHECK + 1).ok_or_else(|| damaged(number))?;
        let (body, written) = (&text[..at], &text[at + 1..]);
        let check = check(&self.last, body);
        let is_written = text[at] == b' ' && hex(&check)[..CHECK] == *written;
        let line = Line::decode(body)
            .filter(|line| is_written && line.sequence > 0 && expected.is_none_or(|number| line.sequence == number));
        let line = line.ok_or_else(|| damaged(number))?;
        self.first = if self.lines.is_empty() { line.sequence } else { self.first };
        self.lines.push(line);
        self.last = check;
        Ok(())
    }
}

fn check(before: &[u8; 32], body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(body);
    *hasher.finalize().as_bytes()
}

fn hex(bytes: &[u8; 32]) -> Vec<u8> {
    blake3::Hash::from_bytes(*bytes).to_hex().as_bytes().to_vec()
}

fn cut(value: &str) -> &str {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

fn damaged(number: usize) -> Error {
    let what = format!("line {number} is damaged; what ran here is not known from there on: {REMEDY}");
    Error::new(Kind::Corrupt, what)
}

/// Takes `data` as a log, and its lines as those of a log whose checks hold.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let new = || HostLog { path: PathBuf::new(), lines: Vec::new(), first: 1, last: [0; 32], len: 0, is_torn: false };
    let mut log = new();
    let is_whole = log.take(data).is_ok() && !log.is_torn;
    assert!(log.len as usize <= data.len() && (!is_whole || log.len as usize == data.len()));
    let (mut sealed, mut last) = (HEAD.to_vec(), [0; 32]);
    for body in data.split(|&b| b == b'\n') {
        last = check(&last, body);
        sealed.extend([body, b" ", &hex(&last)[..CHECK], b"\n"].concat());
    }
    let mut log = new();
    if log.take(&sealed).is_ok() && !log.is_torn {
        let bodies: Vec<Vec<u8>> = log.lines.iter().map(Line::body).collect();
        assert_eq!(bodies.join(&b'\n'), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_lines() -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = HostLog::open(dir.path()).unwrap();
        log.append(5, "begin", &[("type", "web"), ("by", "a b")]).unwrap();
        log.append(6, "intent", &[("commit", "3f"), ("handlers", "")]).unwrap();
        let bytes = std::fs::read(dir.path().join("log")).unwrap();
        (dir, bytes)
    }

    #[test]
    fn lines_come_back_and_go_on() {
        let (dir, _) = two_lines();
        let mut log = HostLog::open(dir.path()).unwrap();
        assert_eq!(log.lines().iter().map(|line| line.sequence).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((log.lines()[0].get("by"), log.lines()[0].get("none")), ("a b", ""));
        log.append(7, "done", &[]).unwrap();
        assert_eq!(HostLog::open(dir.path()).unwrap().lines().len(), 3);
    }

    #[test]
    fn rot_of_the_version_or_of_the_last_byte_is_damage_and_neither_a_newer_format_nor_a_torn_end() {
        let (dir, whole) = two_lines();
        let opened = |bytes: &[u8]| {
            std::fs::write(dir.path().join("log"), bytes).unwrap();
            HostLog::open(dir.path()).map(|log| log.lines().len()).map_err(|error| error.kind())
        };
        let (version, end) = (HEAD.len() - 2, whole.len() - 1);
        for at in [version - 1, version, version + 1, end] {
            for bit in 0..8 {
                let mut rotten = whole.clone();
                rotten[at] ^= 1 << bit;
                assert_eq!(opened(&rotten), Err(Kind::Corrupt), "byte {at}, bit {bit}");
            }
        }
        assert_eq!(opened(&whole[..end]), Ok(1), "cut short by one byte");
        assert_eq!(opened(b"git-devops log 2\nwhatever\n"), Err(Kind::Unsupported));
    }

    #[test]
    fn a_torn_end_is_cut_off_and_anything_else_is_damage() {
        let (dir, bytes) = two_lines();
        let path = dir.path().join("log");
        let second = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
        for end in 0..bytes.len() {
            std::fs::write(&path, &bytes[..end]).unwrap();
            let mut log = HostLog::open(dir.path()).unwrap_or_else(|error| panic!("cut at {end}: {error:#}"));
            let whole = log.lines().len();
            assert_eq!(whole, usize::from(end >= second), "cut at {end}");
            log.append(8, "done", &[]).unwrap();
            assert_eq!(HostLog::open(dir.path()).unwrap().lines().len(), whole + 1, "cut at {end}");
        }
        // Room that was made and never written.
        std::fs::write(&path, [&bytes[..second], &[0; 70]].concat()).unwrap();
        assert_eq!(HostLog::open(dir.path()).unwrap().lines().len(), 1);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            let found = HostLog::open(dir.path()).map(|log| log.lines().len());
            // A line feed that rotted away makes one torn line out of the last one.
            assert!(found.is_err() || at + 1 == bytes.len() && found.is_ok_and(|n| n == 1), "flipped {at}");
        }
    }

    #[test]
    fn a_line_cannot_be_taken_out() {
        let (dir, bytes) = two_lines();
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
        std::fs::write(dir.path().join("log"), [lines[0], lines[2]].concat()).unwrap();
        assert!(HostLog::open(dir.path()).is_err());
    }

    #[test]
    fn what_is_damaged_is_named_and_put_aside_and_the_numbers_go_on() {
        let (dir, bytes) = two_lines();
        assert_eq!(HostLog::examine(dir.path()).unwrap(), None);
        assert_eq!(HostLog::put_aside(dir.path()).unwrap(), None);
        let mut damaged = bytes.clone();
        let second = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
        damaged[second + 4] ^= 1;
        for n in 1..=2 {
            std::fs::write(dir.path().join("log"), &damaged).unwrap();
            let (path, offset, problem) = HostLog::examine(dir.path()).unwrap().unwrap();
            assert_eq!((path, offset, &*problem), (dir.path().join("log"), second as u64, "line 2 is damaged"));
            let aside = HostLog::put_aside(dir.path()).unwrap().unwrap();
            assert_eq!(aside, dir.path().join(format!("quarantine/log-{n}")));
            assert_eq!(std::fs::read(aside).unwrap(), damaged);
        }
        let mut log = HostLog::open(dir.path()).unwrap();
        log.begin_behind(40);
        log.append(7, "begin", &[]).unwrap();
        log.append(7, "done", &[]).unwrap();
        log.begin_behind(90);
        let mut log = HostLog::open(dir.path()).unwrap();
        assert_eq!(log.lines().iter().map(|line| line.sequence).collect::<Vec<_>>(), [41, 42]);
        assert_eq!(log.append(8, "done", &[]).unwrap().sequence, 43);
    }
}
