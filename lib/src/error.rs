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
    /// What is applied to this host in order stopped, and a person decides.
    Halted,
    /// This machine must start anew before anything else is applied.
    Reboot,
    /// Our own mistake.
    Bug,
}

/// Why input is not acted on, more exactly than its [`Kind`]: for programs, by the names in `docs/formats/exit-codes.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A tree has a name that no work tree may get.
    TreeName,
    /// A name or one component of a path is too long.
    NameTooLong,
    /// A tree has an entry that is cut short or written as git never does.
    TreeEntry,
    /// Entries of a tree are out of order, double, or a file and a directory at once.
    TreeOrder,
    /// Directories are nested too deep.
    TreeDepth,
    /// An entry of a tree is of a kind that is not stored.
    Mode,
    /// A path leads into our own directories, or into a filesystem that the kernel makes up.
    PathDenied,
    /// A directory of a running system would take the place of a symlink, or something else that of a directory.
    TypeChangeProtected,
    /// A symlink on the way to a directory could have been put there by another user.
    SymlinkUntrusted,
    /// Another host does not keep to the protocol.
    Proto,
    /// The name of a host is none, or would be read as something else.
    HostSyntax,
    /// A chunk is not the one that was asked for.
    ChunkHash,
    /// A chunk has another length than it should have.
    ChunkLength,
    /// Compressed bytes would need more memory than they may.
    DecompressLimit,
    /// A chunk index says what no writer writes.
    Index,
    /// A metadata file says what no writer writes, or what cannot be done here.
    Meta,
    /// A ref has a name that git refuses or that leads elsewhere.
    RefName,
    /// What a holder is said to hold and promise is not signed by it, or not in order.
    Promise,
    /// The tag object of a release says what no writer writes.
    Release,
    /// A root document says what no writer writes.
    Root,
    /// A signature is missing, not good, not alone, or by a key that may not.
    Signature,
    /// A release is meant for another type, or under another name.
    WrongBranch,
    /// Something older than what was accepted.
    Rollback,
    /// Something that does not follow from what was accepted.
    Fork,
    /// Something between what was accepted and this is missing.
    Gap,
    /// The number of a release is above the limit.
    SeqLimit,
    /// A release has another epoch than the root document says.
    Epoch,
    /// A release has expired.
    StaleHead,
    /// A root document has expired.
    StaleRoot,
    /// Something was issued in the future of this host.
    Future,
    /// Too few root keys signed a root document.
    Threshold,
    /// A release needs a newer program.
    MinVersion,
    /// A tree is not the one that a release names.
    Manifest,
    /// What this host accepted last cannot be read.
    Floor,
}

impl Reason {
    /// Returns the name by which programs know it; it never changes.
    pub fn id(self) -> &'static str {
        match self {
            Self::TreeName => "tree-name",
            Self::NameTooLong => "name-too-long",
            Self::TreeEntry => "tree-entry",
            Self::TreeOrder => "tree-order",
            Self::TreeDepth => "tree-depth",
            Self::Mode => "mode",
            Self::PathDenied => "path-denied",
            Self::TypeChangeProtected => "type-change-protected",
            Self::SymlinkUntrusted => "symlink-untrusted",
            Self::Proto => "proto",
            Self::HostSyntax => "host-syntax",
            Self::ChunkHash => "chunk-hash",
            Self::ChunkLength => "chunk-length",
            Self::DecompressLimit => "decompress-limit",
            Self::Index => "index",
            Self::Meta => "meta",
            Self::RefName => "ref-name",
            Self::Promise => "promise",
            Self::Release => "release",
            Self::Root => "root",
            Self::Signature => "signature",
            Self::WrongBranch => "wrong-branch",
            Self::Rollback => "rollback",
            Self::Fork => "fork",
            Self::Gap => "gap",
            Self::SeqLimit => "seq-limit",
            Self::Epoch => "epoch",
            Self::StaleHead => "stale-head",
            Self::StaleRoot => "stale-root",
            Self::Future => "future",
            Self::Threshold => "threshold",
            Self::MinVersion => "min-version",
            Self::Manifest => "manifest",
            Self::Floor => "floor",
        }
    }
}

/// Tells what failed (one lower-case line, the thing in quotes) and keeps the cause apart.
///
/// `Display` prints the sentence only; `{:#}` adds the causes, separated by colons.
pub struct Error {
    kind: Kind,
    reason: Option<Reason>,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Returns an error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, reason: None, message: message.into(), source: None }
    }

    /// Returns an error about input that is refused for `reason`.
    pub fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message).with_reason(reason)
    }

    /// Returns why exactly the input is not acted on, if that has a name.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Returns the same error with a reason, unless it has one already.
    pub fn with_reason(self, reason: Reason) -> Self {
        Self { reason: self.reason.or(Some(reason)), ..self }
    }

    /// Returns the same error as one about input that is refused for `reason`, if it says that something is damaged: what has the right hash was
    /// written so.
    pub fn or_refused(self, reason: Reason) -> Self {
        match self.kind {
            Kind::Corrupt | Kind::Refused => self.with_reason(reason).with_kind(Kind::Refused),
            _ => self,
        }
    }

    /// Returns the whole story in one line: why it is refused, if that has a name, then what failed and its causes.
    pub fn told(&self) -> String {
        match self.reason {
            Some(reason) if self.kind == Kind::Refused => format!("refused: {}: {self:#}", reason.id()),
            Some(reason) => format!("{}: {self:#}", reason.id()),
            None => format!("{self:#}"),
        }
    }

    /// Returns what a program can do about this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Puts `message` before this error, which becomes its cause; the kind stays.
    pub fn wrap(self, message: impl Into<String>) -> Self {
        Self { kind: self.kind, reason: self.reason, message: message.into(), source: Some(Box::new(self)) }
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
        Self { kind, reason: None, message: plain(&error), source: None }
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

    #[test]
    fn a_reason_comes_through_to_whoever_asks() {
        let error = Error::refused(Reason::TreeName, "name '..' leads out").wrap("cannot read 'x'");
        assert_eq!((error.kind(), error.reason().map(Reason::id)), (Kind::Refused, Some("tree-name")));
        let unsupported = Error::new(Kind::Unsupported, "a newer format").or_refused(Reason::Meta);
        assert_eq!((unsupported.kind(), unsupported.reason()), (Kind::Unsupported, None));
    }
}
