//! What differs from host to host: keys and values chosen by facts, and templates that they are filled into. Data only, no I/O.
//!
//! Format: `docs/formats/env.md`. Everything that is read is bounded, and whatever is not understood is an error that names file and line.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use gix_glob::wildmatch;

use crate::error::{Error, Kind, Result};

/// The file that is read first; the others are what it includes.
pub const MAIN: &str = "main";

/// Where the files stand in a commit.
pub const DIR: &[u8] = b".git-devops/env";

/// What keys of facts begin with.
const FACT: &str = "fact.";

/// Bytes in a file.
pub(super) const MAX_FILE: usize = 1 << 20;
/// Bytes in all files together.
pub(super) const MAX_ALL: usize = 8 << 20;
/// Files.
pub(super) const MAX_FILES: usize = 1000;
/// Bytes in a line.
const MAX_LINE: usize = 16 << 10;
/// Stanzas in all files together, and conditions in one.
const MAX_STANZAS: usize = 10_000;
const MAX_CONDITIONS: usize = 16;
const MAX_VALUE: usize = 4096;
const MAX_NAME: usize = 64;
const MAX_DEPTH: usize = 16;
/// Lines that mean something, in all files together, and once more with each file counted as often as it is included.
const MAX_LINES: usize = 100_000;
/// Bytes that a template may become.
const MAX_RENDERED: usize = 1 << 20;

/// What is known of a host by itself, by name.
pub type Facts = BTreeMap<String, String>;

/// The keys that a host has, with all the lines that set them.
#[derive(Clone, Debug, Default)]
pub struct Env {
    keys: BTreeMap<Arc<str>, Vec<Assignment>>,
}

/// A line that gives a key its value. All that was read from one place is kept once, however often it is included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The value.
    pub value: Arc<str>,
    /// Where it stands.
    pub at: Place,
    /// The stanza that it stands in, as it is written; empty for what holds everywhere.
    pub stanza: Arc<str>,
}

/// A line of a file; a fact has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file, or of the fact.
    pub file: Arc<str>,
    /// From 1 on; 0 for a fact.
    pub line: usize,
}

impl Env {
    /// Reads all `files`, by name, and keeps what holds for a host with these `facts`. Without files, there are the facts alone.
    pub fn new(files: &BTreeMap<String, Vec<u8>>, facts: &Facts) -> Result<Self> {
        let parsed = decode_files(files)?;
        let mut env = Self::default();
        let everywhere: Arc<str> = "".into();
        for (name, value) in facts {
            let at = Place { file: name.as_str().into(), line: 0 };
            let assignment = Assignment { value: value.as_str().into(), at, stanza: everywhere.clone() };
            env.keys.insert(format!("{FACT}{name}").into(), vec![assignment]);
        }
        let mut reader = Reader { files: &parsed, facts, n_lines: 0, open: Vec::new() };
        if parsed.contains_key(MAIN) {
            reader.read(MAIN, &mut env)?;
        } else if let Some(name) = parsed.keys().next() {
            return Err(bad(format!("'{name}' is there, but no '{MAIN}' that includes it")));
        }
        Ok(env)
    }

    /// Refuses a file that is not understood.
    pub fn check(name: &str, text: &[u8]) -> Result<()> {
        decode_file(name, text, &mut Room::default()).map(drop)
    }

    /// Returns what a key is, the line that counts last in a list of all that set it.
    pub fn all(&self, key: &str) -> &[Assignment] {
        self.keys.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the line that counts for a key.
    pub fn get(&self, key: &str) -> Option<&Assignment> {
        self.all(key).last()
    }

    /// Returns all keys with the line that counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Assignment)> {
        self.keys.iter().filter_map(|(key, all)| Some((&**key, all.last()?)))
    }

    /// Returns how many keys there are beside the facts: what somebody has to keep right by hand.
    pub fn n_keys(&self) -> usize {
        self.keys.keys().filter(|key| !key.starts_with(FACT)).count()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "fact {}", self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// Says whether `name` can name a file of the environment, a fact, or what a stanza asks for.
pub fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

/// Says whether `text` can be the value of a key or of a fact.
pub fn is_value(text: &str) -> bool {
    text.len() <= MAX_VALUE && !text.contains('\0')
}

/// A stanza of a file, with the lines that stand in it.
struct Stanza {
    /// What stands between the brackets; empty for what stands before the first one.
    text: Arc<str>,
    /// Facts and patterns that they must match, all of them.
    conditions: Vec<(String, String)>,
    statements: Vec<Statement>,
}

struct Statement {
    line: usize,
    what: What,
}

enum What {
    Set(Arc<str>, Arc<str>),
    Include(String),
}

impl Stanza {
    /// Decodes what stands between brackets.
    fn decode(text: &str) -> Result<Self> {
        let mut conditions = Vec::new();
        for word in text.split_ascii_whitespace().filter(|_| text != "all") {
            let condition = word.split_once('=').filter(|(fact, pattern)| is_name(fact) && !pattern.is_empty());
            let (fact, pattern) = condition.ok_or_else(|| {
                bad(format!("'{}' is no condition: write 'host=PATTERN', 'FACT=PATTERN' or '[all]'", word.escape_debug()))
            })?;
            if pattern.bytes().filter(|b| *b == b'*').count() > 4 || pattern.len() > 256 {
                return Err(bad(format!("'{}' is too long, or has more than four stars", word.escape_debug())));
            }
            if conditions.len() == MAX_CONDITIONS {
                return Err(bad(format!("a stanza has more than {MAX_CONDITIONS} conditions")));
            }
            conditions.push((fact.to_owned(), pattern.to_owned()));
        }
        if conditions.is_empty() && text != "all" {
            return Err(bad("a stanza without a condition; write '[all]' for all hosts"));
        }
        Ok(Self { text: text.into(), conditions, statements: Vec::new() })
    }

    fn holds(&self, facts: &Facts) -> bool {
        let matches = |name: &str, pattern: &str| {
            let value = facts.get(name).map(String::as_str);
            value.is_some_and(|value| gix_glob::wildmatch(pattern.into(), value.into(), wildmatch::Mode::empty()))
        };
        self.conditions.iter().all(|(fact, pattern)| match fact.as_str() {
            "host" => matches("hostname", pattern) || matches("fqdn", pattern),
            fact => matches(fact, pattern),
        })
    }
}

/// How much was read already, of what all files together may have.
#[derive(Default)]
struct Room {
    n_bytes: usize,
    n_stanzas: usize,
    n_lines: usize,
}

/// Reads all files of the environment.
fn decode_files(files: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<Arc<str>, Vec<Stanza>>> {
    if files.len() > MAX_FILES {
        return Err(bad(format!("there are more than {MAX_FILES} environment files")));
    }
    let mut room = Room::default();
    files.iter().map(|(name, text)| Ok((name.as_str().into(), decode_file(name, text, &mut room)?))).collect()
}

/// Reads a file of the environment; an error names file and line.
fn decode_file(name: &str, text: &[u8], room: &mut Room) -> Result<Vec<Stanza>> {
    let shown = || name.escape_debug();
    if !is_name(name) || text.len() > MAX_FILE {
        return Err(bad(format!("environment file '{}' has a wrong name, or more than {MAX_FILE} bytes", shown())));
    }
    room.n_bytes += text.len();
    if room.n_bytes > MAX_ALL {
        return Err(bad(format!("with environment file '{}', all of them have more than {MAX_ALL} bytes", shown())));
    }
    let mut stanzas = vec![Stanza { text: "".into(), conditions: Vec::new(), statements: Vec::new() }];
    for (at, line) in text.split(|&b| b == b'\n').enumerate() {
        decode_line(line, at + 1, &mut stanzas, room)
            .map_err(|error| error.wrap(format!("environment file '{}' has a bad line {}", shown(), at + 1)))?;
    }
    Ok(stanzas)
}

/// Reads a line, and adds what it means to the last of `stanzas`, or a stanza.
fn decode_line(line: &[u8], at: usize, stanzas: &mut Vec<Stanza>, room: &mut Room) -> Result<()> {
    if line.len() > MAX_LINE {
        return Err(bad(format!("it is longer than {MAX_LINE} bytes")));
    }
    let line = std::str::from_utf8(line).map_err(|_| bad("it is not UTF-8"))?.trim_matches([' ', '\t']);
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(bad("it has a control character"));
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    if let Some(header) = line.strip_prefix('[') {
        let header = header.strip_suffix(']').ok_or_else(|| bad("a stanza ends with ']'"))?;
        room.n_stanzas += 1;
        if room.n_stanzas > MAX_STANZAS {
            return Err(bad(format!("with it, there are more than {MAX_STANZAS} stanzas in all files together")));
        }
        stanzas.push(Stanza::decode(header.trim())?);
        return Ok(());
    }
    room.n_lines += 1;
    if room.n_lines > MAX_LINES {
        return Err(bad(format!("with it, there are more than {MAX_LINES} lines in all files together")));
    }
    let what = decode_statement(line)?;
    stanzas.last_mut().expect("BUG: there is one from the beginning").statements.push(Statement { line: at, what });
    Ok(())
}

fn decode_statement(line: &str) -> Result<What> {
    if let Some(name) = line.strip_prefix("include ") {
        let name = name.trim();
        return match is_name(name) {
            true => Ok(What::Include(name.to_owned())),
            false => Err(bad(format!("'{}' is not the name of a file here", name.escape_debug()))),
        };
    }
    let (key, value) =
        line.split_once('=').ok_or_else(|| bad("it is neither 'KEY = VALUE', '[CONDITION]', 'include NAME' nor a comment"))?;
    let key = key.trim_end_matches([' ', '\t']);
    if !is_name(key) || key.starts_with(FACT) {
        return Err(bad(format!(
            "'{}' is not a key: up to {MAX_NAME} of a-z, 0-9, '-', '_' and '.', not beginning with 'fact.'",
            key.escape_debug()
        )));
    }
    Ok(What::Set(key.into(), decode_value(value.trim_matches([' ', '\t']))?.into()))
}

/// Reads a value: as it stands, or within double quotes with `\"`, `\\` and `\n`.
fn decode_value(text: &str) -> Result<String> {
    let Some(rest) = text.strip_prefix('"') else {
        return if is_value(text) { Ok(text.to_owned()) } else { Err(bad(format!("a value has more than {MAX_VALUE} bytes"))) };
    };
    let mut value = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next() {
            None => return Err(bad("a quote is not closed")),
            Some('"') => break,
            Some('\\') => value.push(match chars.next() {
                Some('n') => '\n',
                Some(c @ ('"' | '\\')) => c,
                _ => return Err(bad("within quotes, a backslash stands before '\"', '\\' or 'n' only")),
            }),
            Some(c) => value.push(c),
        }
    }
    match chars.as_str().is_empty() && is_value(&value) {
        true => Ok(value),
        false => Err(bad(format!("something follows the closing quote, or the value has more than {MAX_VALUE} bytes"))),
    }
}

struct Reader<'a> {
    files: &'a BTreeMap<Arc<str>, Vec<Stanza>>,
    facts: &'a Facts,
    n_lines: usize,
    /// The files that are being read, each included by the one before.
    open: Vec<&'a str>,
}

impl<'a> Reader<'a> {
    fn read(&mut self, name: &str, env: &mut Env) -> Result<()> {
        let (name, stanzas) =
            self.files.get_key_value(name).ok_or_else(|| bad(format!("there is no environment file '{name}'")))?;
        if self.open.contains(&&**name) || self.open.len() == MAX_DEPTH {
            return Err(bad(format!("'{name}' includes itself, or files are included more than {MAX_DEPTH} deep")));
        }
        self.n_lines += stanzas.iter().map(|stanza| 1 + stanza.statements.len()).sum::<usize>();
        if self.n_lines > MAX_LINES {
            return Err(bad(format!("more than {MAX_LINES} lines are included")));
        }
        self.open.push(name);
        for stanza in stanzas.iter().filter(|stanza| stanza.holds(self.facts)) {
            for Statement { line, what } in &stanza.statements {
                let at = Place { file: name.clone(), line: *line };
                match what {
                    What::Include(other) => {
                        self.read(other, env).map_err(|error| error.wrap(format!("in environment file '{at}'")))?
                    }
                    What::Set(key, value) => {
                        let assignment = Assignment { value: value.clone(), at, stanza: stanza.text.clone() };
                        env.keys.entry(key.clone()).or_default().push(assignment);
                    }
                }
            }
        }
        self.open.pop();
        Ok(())
    }
}

/// A file with places that are filled in for each host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Fill(Use),
    /// What follows, up to the matching end, is there if the key has a value that is not empty.
    If(Use),
    End,
}

/// A place in a template that names a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The key.
    pub key: String,
    /// What stands for it where it has no value; `None` if it must have one.
    pub default: Option<String>,
    /// The line, from 1 on.
    pub line: usize,
}

impl Template {
    /// Reads a template; an error names the line.
    pub fn decode(text: &[u8]) -> Result<Self> {
        let mut parts = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        for (at, line) in text.split_inclusive(|&b| b == b'\n').enumerate() {
            let directive = line.strip_suffix(b"\n").unwrap_or(line);
            let key = directive.strip_prefix(b"#if ").and_then(|key| std::str::from_utf8(key).ok()).filter(|key| is_name(key));
            if let Some(key) = key {
                if open.len() == MAX_DEPTH {
                    return Err(bad(format!("line {}: '#if' is nested more than {MAX_DEPTH} deep", at + 1)));
                }
                open.push(at + 1);
                parts.push(Part::If(Use { key: key.to_owned(), default: Some(String::new()), line: at + 1 }));
            } else if directive == b"#end" {
                open.pop().ok_or_else(|| bad(format!("line {}: '#end' without '#if'", at + 1)))?;
                parts.push(Part::End);
            } else {
                decode_text(line, at + 1, &mut parts)?;
            }
        }
        match open.last() {
            Some(line) => Err(bad(format!("line {line}: '#if' without '#end'"))),
            None => Ok(Self { parts }),
        }
    }

    /// Returns every place that names a key, in order.
    pub fn uses(&self) -> impl Iterator<Item = &Use> {
        self.parts.iter().filter_map(|part| match part {
            Part::Fill(place) | Part::If(place) => Some(place),
            Part::Text(_) | Part::End => None,
        })
    }

    /// Returns what the template becomes; a key without a value is an error that names line and key.
    pub fn render(&self, env: &Env) -> Result<Vec<u8>> {
        let mut rendered = Vec::new();
        // How deep we are within something that is left out.
        let mut n_left_out = 0_usize;
        for part in &self.parts {
            match part {
                Part::If(_) if n_left_out > 0 => n_left_out += 1,
                Part::If(place) => n_left_out = usize::from(env.get(&place.key).is_none_or(|found| found.value.is_empty())),
                Part::End => n_left_out = n_left_out.saturating_sub(1),
                _ if n_left_out > 0 => (),
                Part::Text(text) => rendered.extend_from_slice(text),
                Part::Fill(place) => rendered.extend_from_slice(place.value(env)?.as_bytes()),
            }
            if rendered.len() > MAX_RENDERED {
                return Err(bad(format!("it becomes more than {MAX_RENDERED} bytes")));
            }
        }
        Ok(rendered)
    }
}

impl Use {
    fn value<'a>(&'a self, env: &'a Env) -> Result<&'a str> {
        let found = env.get(&self.key).map(|found| &*found.value).or(self.default.as_deref());
        found.ok_or_else(|| {
            let Self { key, line, .. } = self;
            bad(format!("line {line}: key '{key}' has no value on this host; set it in '.git-devops/env/{MAIN}', or write '${{{key}:-DEFAULT}}'"))
        })
    }
}

/// Reads a line of text with places to fill.
fn decode_text(mut rest: &[u8], line: usize, parts: &mut Vec<Part>) -> Result<()> {
    let mut text = Vec::new();
    while let Some(at) = rest.windows(2).position(|two| two == b"${") {
        if at > 0 && rest[at - 1] == b'$' {
            text.extend_from_slice(&rest[..at - 1]);
            text.extend_from_slice(b"${");
            rest = &rest[at + 2..];
            continue;
        }
        text.extend_from_slice(&rest[..at]);
        let end = rest[at..].iter().position(|&b| b == b'}').map(|len| at + len);
        let end =
            end.ok_or_else(|| bad(format!("line {line}: '${{' without '}}'; for the characters themselves write '$${{'")))?;
        let inner = std::str::from_utf8(&rest[at + 2..end]).map_err(|_| bad(format!("line {line}: a key is not UTF-8")))?;
        let (key, default) = match inner.split_once(":-") {
            Some((key, default)) => (key, Some(default.to_owned())),
            None => (inner, None),
        };
        if !is_name(key) {
            let shown = inner.escape_debug();
            return Err(bad(format!("line {line}: '${{{shown}}}' names no key; for the characters themselves write '$${{'")));
        }
        parts.push(Part::Text(std::mem::take(&mut text)));
        parts.push(Part::Fill(Use { key: key.to_owned(), default, line }));
        rest = &rest[end + 1..];
    }
    text.extend_from_slice(rest);
    parts.push(Part::Text(text));
    Ok(())
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Kind::Refused, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> Facts {
        let facts = [("hostname", "web1"), ("fqdn", "web1.example.org"), ("arch", "x86_64"), ("os-id", "debian"), ("rack", "7")];
        facts.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn env_of(files: &[(&str, &str)]) -> Result<Env> {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        Env::new(&files, &facts())
    }

    const MAIN_TEXT: &str = "\
# All hosts.
dns = 10.0.0.1
motd = \"a \\\"b\\\"\\n\\\\c \"
[host=web*]
role = web
include site
[host=*.example.org arch=x86_64]
dns = 10.0.0.2
[host=db1]
role = db
[rack=[67]]
dns = 10.0.0.7
[all]
last=
";

    #[test]
    fn of_the_stanzas_that_hold_the_last_line_counts() {
        let env = env_of(&[("main", MAIN_TEXT), ("site", "ntp = ntp.site\n[arch=arm*]\nntp = never\n")]).unwrap();
        let told: Vec<String> =
            env.iter().map(|(key, found)| format!("{key}={:?} {} [{}]", found.value, found.at, found.stanza)).collect();
        assert_eq!(
            told,
            [
                r#"dns="10.0.0.7" main:12 [rack=[67]]"#,
                r#"fact.arch="x86_64" fact arch []"#,
                r#"fact.fqdn="web1.example.org" fact fqdn []"#,
                r#"fact.hostname="web1" fact hostname []"#,
                r#"fact.os-id="debian" fact os-id []"#,
                r#"fact.rack="7" fact rack []"#,
                r#"last="" main:14 [all]"#,
                r#"motd="a \"b\"\n\\c " main:3 []"#,
                r#"ntp="ntp.site" site:1 []"#,
                r#"role="web" main:5 [host=web*]"#,
            ]
        );
        assert_eq!(env.n_keys(), 5);
        assert_eq!(env.all("dns").iter().map(|found| &*found.value).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2", "10.0.0.7"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_file_and_line() {
        for (text, want) in [
            ("a = 1\nb", "'main' has a bad line 2"),
            ("A = 1", "is not a key"),
            (" = 1", "is not a key"),
            ("fact.x = 1", "is not a key"),
            ("a = \"b", "not closed"),
            ("a = \"b\" c", "follows the closing quote"),
            ("a = \"\\t\"", "backslash"),
            ("a = b\rc", "control character"),
            ("[host]", "is no condition"),
            ("[]", "without a condition"),
            ("[host=a", "ends with ']'"),
            ("[host=a*b*c*d*e*f]", "four stars"),
            ("include ../main", "not the name of a file"),
            ("include other", "there is no environment file 'other'"),
            ("include main", "includes itself"),
        ] {
            let error = format!("{:#}", env_of(&[("main", text)]).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
            assert!(error.contains("main"), "{text}: {error}");
        }
        assert!(env_of(&[("other", "a = 1")]).is_err(), "nobody would read it");
        assert!(env_of(&[("main", &format!("a = {}", "x".repeat(MAX_VALUE + 1)))]).is_err());
        assert!(env_of(&[("main", "a = 1"), ("unused", "b")]).is_err(), "also what is not included is looked at");
    }

    #[test]
    fn includes_are_bounded() {
        // Each level includes the next one ten times: a billion lines, if nothing stopped it.
        let names: Vec<String> = std::iter::once("main".to_owned()).chain((1..10).map(|n| format!("f{n}"))).collect();
        let mut files = BTreeMap::new();
        for (n, name) in names.iter().enumerate() {
            let text = names.get(n + 1).map(|next| format!("include {next}\n").repeat(10)).unwrap_or_default();
            files.insert(name.clone(), text.into_bytes());
        }
        assert!(Env::new(&files, &facts()).unwrap_err().to_string().contains("environment"));
    }

    #[test]
    fn files_stanzas_conditions_and_lines_are_bounded() {
        let conditions = |n| format!("[{}]\n", vec!["rack=7"; n].join(" "));
        let files = |n: usize, text: &str| {
            (0..n)
                .map(|n| if n == 0 { "main".into() } else { format!("f{n}") })
                .map(|name: String| (name, text.as_bytes().to_vec()))
                .collect::<BTreeMap<_, _>>()
        };
        for (good, bad, want) in [
            (files(1, &conditions(16)), files(1, &conditions(17)), "more than 16 conditions"),
            (
                files(1, &"[all]\n".repeat(10_000)),
                files(1, &"[all]\n".repeat(10_001)),
                "bad line 10001: with it, there are more than 10000 stanzas",
            ),
            (files(2, &"[all]\n".repeat(5000)), files(2, &"[all]\n".repeat(5001)), "more than 10000 stanzas"),
            (
                files(1, &"a=\n".repeat(99_999)),
                files(1, &"a=\n".repeat(100_001)),
                "bad line 100001: with it, there are more than 100000 lines",
            ),
            (files(2, &"a=\n".repeat(50_000)), files(2, &"a=\n".repeat(50_001)), "more than 100000 lines"),
            (
                files(1, &format!("# {}", "x".repeat(16_382))),
                files(1, &format!("# {}", "x".repeat(16_383))),
                "bad line 1: it is longer than 16384 bytes",
            ),
            (files(8, &"#\n".repeat(1 << 19)), files(9, &"#\n".repeat(1 << 19)), "more than 8388608 bytes"),
            (files(1, &"#\n".repeat(1 << 19)), files(1, &"#\n".repeat((1 << 19) + 1)), "more than 1048576 bytes"),
            (files(1000, ""), files(1001, ""), "more than 1000 environment files"),
        ] {
            Env::new(&good, &facts()).unwrap_or_else(|error| panic!("{want}: {error:#}"));
            let error = format!("{:#}", Env::new(&bad, &facts()).unwrap_err());
            assert!(error.contains(want), "{want}: {error}");
        }
    }

    #[test]
    fn a_template_is_filled() {
        let env = env_of(&[("main", "a = A\nempty =\nd = ${a}\n")]).unwrap();
        for (text, want) in [
            ("", ""),
            ("plain $x $ $$ {a}\n", "plain $x $ $$ {a}\n"),
            ("${a}${a}-${fact.hostname}\n", "AA-web1\n"),
            ("${none:-x y} ${none:-} ${a:-x}", "x y  A"),
            ("$${a} $$${a}", "${a} $${a}"),
            ("${d}", "${a}"), // values are data
            ("1\n#if a\n2\n#if none\n3 ${none}\n#if a\n4\n#end\n#end\n5\n#end\n6", "1\n2\n5\n6"),
            ("#if empty\nx\n#end\n", ""),
            ("#if you want a comment\n #if a\n", "#if you want a comment\n #if a\n"),
        ] {
            let template = Template::decode(text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(template.render(&env).unwrap()).unwrap(), want, "{text}");
        }
        let template = Template::decode(b"\xff${a}\xfe").unwrap();
        assert_eq!(template.render(&env).unwrap(), b"\xffA\xfe");
    }

    #[test]
    fn a_template_that_cannot_be_filled_names_line_and_key() {
        let env = env_of(&[]).unwrap();
        for (text, want) in [
            ("x\n${none}", "line 2: key 'none' has no value"),
            ("${", "line 1: '${' without '}'"),
            ("\n${A}", "line 2: '${A}' names no key"),
            ("${a\n}", "line 1: '${' without '}'"),
            ("#if a\n", "line 1: '#if' without '#end'"),
            ("#end", "line 1: '#end' without '#if'"),
            (&"#if a\n".repeat(17), "nested"),
        ] {
            let rendered = Template::decode(text.as_bytes()).and_then(|template| template.render(&env));
            let error = rendered.unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        let env = env_of(&[("main", &format!("a = {}", "x".repeat(MAX_VALUE)))]).unwrap();
        assert!(Template::decode("${a}".repeat(300).as_bytes()).unwrap().render(&env).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(text in "([a-c]( ?= ?|=)?[\"\\\\ab*\\[\\]]{0,5}\n|\\[(all|host=[a*?\\[]{1,4})\\]\n|include (main|b)\n|.{0,9}\n){0,20}", raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let files = |text: &[u8]| BTreeMap::from([("main".to_owned(), text.to_vec()), ("b".to_owned(), raw.clone())]);
            let _ = Env::new(&files(text.as_bytes()), &facts());
            let _ = Env::new(&files(&raw), &facts());
        }

        #[test]
        fn nothing_makes_the_renderer_panic(text in "(\\$|\\{|\\}|:-|a|b|\n|#if a\n|#if b\n|#end\n|é){0,40}") {
            let env = env_of(&[("main", "a = 1")]).unwrap();
            let _ = Template::decode(text.as_bytes()).and_then(|template| template.render(&env));
        }

        #[test]
        fn what_has_no_place_to_fill_stays_as_it_is(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(!text.windows(2).any(|two| two == b"${") && !text.windows(3).any(|three| three == b"#if") && !text.windows(4).any(|four| four == b"#end"));
            prop_assert_eq!(Template::decode(&text).unwrap().render(&Env::default()).unwrap(), text);
        }
    }
}
