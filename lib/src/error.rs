//! The one error type: a kind for programs, a sentence for people, and the cause.

use std::{fmt, io};

/// What every function of this library returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What a program can do about an error; `docs/formats/exit-codes.md` gives each its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong: an unknown option, a path outside the work tree.
    Usage,
    /// The thing asked for does not exist.
    NotFound,
    /// Stored bytes are not what was stored: a checksum, a length or a format does not hold.
    Corrupt,
    /// The operating system refused or failed.
    Io,
    /// A disk, a quota or an inode table is full.
    NoSpace,
    /// Another run holds the lock.
    Locked,
    /// Input that we will not act on: a hostile name, a path that is not ours, a protected type change.
    Refused,
    /// Two changes of the same thing.
    Conflict,
    /// Some of the work could not be done; the rest was.
    Partial,
    /// A format or a feature newer than this program.
    Unsupported,
    /// Our own mistake.
    Bug,
}

/// Tells what failed (one lower-case line, the thing in quotes) and keeps the cause apart.
///
/// `Display` prints the sentence only; `{:#}` adds the causes, separated by colons.
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Returns an error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Returns what a program can do about this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Puts `message` before this error, which becomes its cause; the kind stays.
    pub fn wrap(self, message: impl Into<String>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// Returns the same error as another kind, where the caller knows better than the cause.
    pub fn with_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if f.alternate() {
            let mut cause = std::error::Error::source(self);
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self:#}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Io,
        };
        Self { kind, message: plain(&error), source: None }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Returns the operating system's own words, in lower case and without the number that Rust appends.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Adds to an error what only the caller knows.
pub trait Context<T> {
    /// Puts the sentence that `what` returns before the error, which becomes the cause.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().wrap(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_the_failure_first_and_the_cause_last() {
        let full: Result<()> = Err(rustix::io::Errno::NOSPC).context(|| "cannot write pack 'x'");
        let error = full.unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(error.to_string(), "cannot write pack 'x'");
        assert_eq!(format!("{error:#}"), "cannot write pack 'x': no space left on device");
    }
}
