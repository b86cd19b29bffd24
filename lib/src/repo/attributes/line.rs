//! One line of an attributes file: words, and what each of them lays down.

use std::mem::discriminant;

use gix_glob::Pattern;

use super::{Ownership, Policy};
use crate::chunk::ChunkerSpec;
use crate::error::{Error, Kind, Result};
use crate::journal::HandlerName;

/// Bytes in a line, and handlers in a list: more is nobody's intent.
const MAX_LINE: usize = 16 << 10;
const MAX_HANDLERS: usize = 16;

/// A pattern and what is laid down for what it matches.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub pattern: Pattern,
    pub settings: Vec<Setting>,
}

/// What one word of a line lays down; `None`, `false` and `true` for what holds where nothing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Chunker(Option<ChunkerSpec>),
    Ownership(Ownership),
    Volatile(bool),
    Derived(bool),
    Protect(bool),
    Exact(bool),
    Merge(bool),
    Validate(Option<String>),
    Handlers(Vec<String>),
    InPlace(bool),
    Times(bool),
}

impl Line {
    pub fn decode(line: &[u8]) -> Result<Self> {
        let mut words = words(line)?.into_iter();
        let pattern = words.next().and_then(|word| Pattern::from_bytes(&word));
        let pattern = pattern.filter(|pattern| !pattern.is_negative()).ok_or_else(|| bad("it has no pattern"))?;
        let mut settings: Vec<Setting> = Vec::new();
        for word in words {
            let word = String::from_utf8(word).map_err(|_| bad("a word after the pattern is not UTF-8"))?;
            let setting = Setting::decode(&word)?;
            if settings.iter().any(|other| discriminant(other) == discriminant(&setting)) {
                return Err(bad(format!("'{word}' says again, or otherwise, what the line says already")));
            }
            settings.push(setting);
        }
        Ok(Self { pattern, settings })
    }
}

impl Setting {
    fn decode(word: &str) -> Result<Self> {
        let unknown = || {
            bad(format!(
                "unknown attribute '{word}'; known are own, seed, env, local, secret, volatile, derived, protect, exact, merge=3way, \
                 validate=CMD, handler=NAME, inplace=ok, times=no, chunker=SPEC, and all but the first five with '-' before them"
            ))
        };
        Ok(match word.split_once('=') {
            None => match word {
                "own" => Self::Ownership(Ownership::Own),
                "seed" => Self::Ownership(Ownership::Seed),
                "env" => Self::Ownership(Ownership::Env),
                "local" => Self::Ownership(Ownership::Local),
                "secret" => Self::Ownership(Ownership::Secret),
                "volatile" => Self::Volatile(true),
                "derived" => Self::Derived(true),
                "protect" => Self::Protect(true),
                "exact" => Self::Exact(true),
                "-volatile" => Self::Volatile(false),
                "-derived" => Self::Derived(false),
                "-protect" => Self::Protect(false),
                "-exact" => Self::Exact(false),
                "-merge" => Self::Merge(false),
                "-validate" => Self::Validate(None),
                "-handler" => Self::Handlers(Vec::new()),
                "-inplace" => Self::InPlace(false),
                "-times" => Self::Times(true),
                "-chunker" => Self::Chunker(None),
                "-own" | "-seed" | "-env" | "-local" | "-secret" => {
                    return Err(bad(format!(
                        "'{word}' cannot be taken back; write which of own, seed, env, local, secret counts"
                    )));
                }
                _ => return Err(unknown()),
            },
            Some(("chunker", spec)) => Self::Chunker(Some(spec.parse()?)),
            Some(("merge", "3way")) => Self::Merge(true),
            Some(("validate", command)) => Self::Validate(Some(checked_command(command)?)),
            Some(("handler", names)) => Self::Handlers(handlers(names)?),
            Some(("inplace", "ok")) => Self::InPlace(true),
            Some(("times", "no")) => Self::Times(false),
            Some(_) => return Err(unknown()),
        })
    }

    pub fn apply(&self, policy: &mut Policy) {
        match self {
            Self::Chunker(_) => (), // asked for by itself, for large files alone
            Self::Ownership(ownership) => policy.ownership = *ownership,
            Self::Volatile(is) => policy.is_volatile = *is,
            Self::Derived(is) => policy.is_derived = *is,
            Self::Protect(is) => policy.is_protected = *is,
            Self::Exact(is) => policy.is_exact = *is,
            Self::Merge(is) => policy.merges = *is,
            Self::Validate(command) => policy.validate.clone_from(command),
            Self::Handlers(names) => policy.handlers.clone_from(names),
            Self::InPlace(is) => policy.is_in_place = *is,
            Self::Times(has) => policy.has_times = *has,
        }
    }
}

fn checked_command(command: &str) -> Result<String> {
    if !command.contains("%s") {
        return Err(bad(format!("'validate={command}' does not say where the file goes: write '%s' for it")));
    }
    Ok(command.to_owned())
}

fn handlers(names: &str) -> Result<Vec<String>> {
    let mut list: Vec<String> = Vec::new();
    for name in names.split(',') {
        let name: HandlerName = name.parse()?;
        if list.iter().any(|other| other == name.as_str()) || list.len() == MAX_HANDLERS {
            return Err(bad(format!("'handler={names}' names one twice, or more than {MAX_HANDLERS}")));
        }
        list.push(name.as_str().to_owned());
    }
    Ok(list)
}

/// Splits a line at spaces and tabs that are not within double quotes.
pub(super) fn words(line: &[u8]) -> Result<Vec<Vec<u8>>> {
    if line.len() > MAX_LINE {
        return Err(bad(format!("it is longer than {MAX_LINE} bytes")));
    }
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut is_quoted = false;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            b'\\' if is_quoted => match bytes.next() {
                Some(escaped @ (b'"' | b'\\')) => word.get_or_insert_default().push(escaped),
                _ => return Err(bad("within quotes, a backslash stands before '\"' or '\\' only")),
            },
            b' ' | b'\t' if !is_quoted => words.extend(word.take()),
            _ if byte.is_ascii_control() => return Err(bad("it has a control character")),
            _ => word.get_or_insert_default().push(byte),
        }
    }
    if is_quoted {
        return Err(bad("a quote is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// Returns `word` as it stands in a line: quoted where it must be, `key="value"` from behind the `=`.
pub(super) fn quoted(word: &str) -> String {
    let needs_quotes = |text: &str| text.is_empty() || text.starts_with('#') || text.contains([' ', '\t', '"']);
    if !needs_quotes(word) {
        return word.to_owned();
    }
    let is_key = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase());
    let (key, value) = match word.split_once('=').filter(|(key, _)| is_key(key)) {
        Some((key, value)) => (format!("{key}="), value),
        None => (String::new(), word),
    };
    format!("{key}\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_keep_a_word_together() {
        for (line, want) in [
            ("a b", Some(&["a", "b"][..])),
            ("  a\t b  ", Some(&["a", "b"])),
            (r#""a b" c"#, Some(&["a b", "c"])),
            (r#"x validate="a \"b\" \\ %s""#, Some(&["x", r#"validate=a "b" \ %s"#])),
            (r#"x """#, Some(&["x", ""])),
            (r"\* b\[", Some(&[r"\*", r"b\["])),
            (r#""a"#, None),
            (r#""\n""#, None),
            ("\"a\\", None),
            ("a\u{b}b", None),
            ("a\0b", None),
        ] {
            let found = words(line.as_bytes()).ok();
            let want = want.map(|words| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
            assert_eq!(found, want, "{line}");
        }
    }

    #[test]
    fn a_line_without_bounds_is_refused() {
        assert!(words(&[b'a'; MAX_LINE + 1]).is_err());
        assert!(Line::decode(format!("x handler={}", "a,".repeat(3000)).as_bytes()).is_err());
        assert!(Line::decode(format!("x handler={}", "a".repeat(65)).as_bytes()).is_err());
        assert!(Line::decode(format!("x handler={}", "a".repeat(64)).as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_as_it_was(found in proptest::collection::vec("[^\\x00-\\x1f\\x7f]{0,12}|[a-z]+=[ \"\\\\a%]{0,9}", 1..5)) {
            // A backslash is a word's own where it is not in quotes: what `quoted` leaves alone comes back alone.
            let line = found.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            let want: Vec<Vec<u8>> = found.iter().map(|word| word.as_bytes().to_vec()).collect();
            prop_assert_eq!(words(line.as_bytes()).unwrap(), want);
        }

        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Line::decode(&line);
        }
    }
}
