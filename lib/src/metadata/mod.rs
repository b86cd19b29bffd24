//! What Linux keeps about a file and git cannot hold: mode, owner, times, nodes, links, attributes, flags.
//!
//! [`of_file`] reads it from an open file, [`apply_to_file`] puts it back, and [`DirMetadata`] is the text of one
//! directory (`docs/formats/metadata.md`); [`merge`] joins two versions of that text. Nothing here touches content.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Kind, Result};
use crate::safepath::{FileKind, Time};

mod apply;
pub(crate) mod base64;
mod capture;
mod flags;
mod inode;
mod merge;
mod names;
mod text;

pub use apply::{add_flags, apply_flags, apply_flags_before_content, apply_to_entry, apply_to_file, clear_flags, locking_flags};
pub use capture::{holes, of_entry, of_file};
pub use flags::Flags;
pub use merge::{Merged, merge};
pub use names::{Account, Names, owner};
pub use text::{Entries, encode_entry, encode_header, escaped, unescaped};

/// Longest value of an extended attribute, in bytes: the kernel's limit.
pub const MAX_XATTR_VALUE: usize = 65536;

/// Largest major number of a device.
pub const MAX_MAJOR: u32 = 0xfff;

/// Largest minor number of a device.
pub const MAX_MINOR: u32 = 0xf_ffff;

/// Everything about one file, directory or node but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Type of the entry.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky, `07777` at most; 0777 for every symlink.
    pub mode: u16,
    /// Owner, as a number; never `u32::MAX`.
    pub uid: u32,
    /// Owner, as a name, where the number has one.
    pub user: Option<Vec<u8>>,
    /// Group, as a number; never `u32::MAX`.
    pub gid: u32,
    /// Group, as a name, where the number has one.
    pub group: Option<Vec<u8>>,
    /// When the content was last changed; `None` where times are not recorded.
    pub mtime: Option<Time>,
    /// Device number (major, minor) of a character or block device, and of nothing else.
    pub rdev: Option<(u32, u32)>,
    /// Inode flags that a person can set.
    pub flags: Flags,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Path of the first member of the hard-link group, from the top of the work tree; `None` for that member itself.
    pub hardlink: Option<Vec<u8>>,
    /// Holes (offset, length) of a small file, ascending; a large file has them in its chunk index.
    pub holes: Vec<(u64, u64)>,
    /// A directory that is known only as the parent of owned paths.
    pub partial: bool,
}

/// The metadata of one directory and of its entries that are not directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirMetadata {
    /// The directory itself.
    pub dir: Metadata,
    /// Its entries by name; one that equals [`Metadata::new`] of a file is not written, and not read back.
    pub entries: BTreeMap<Vec<u8>, Metadata>,
}

/// How git holds an entry that is not a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GitKind {
    /// Mode 100644.
    File,
    /// Mode 100755.
    Executable,
    /// Mode 120000.
    Symlink,
}

impl Metadata {
    /// Returns what an entry of type `kind` has when nothing is written about it.
    pub fn new(kind: FileKind) -> Self {
        Self {
            kind,
            mode: default_mode(kind),
            uid: 0,
            user: Some(b"root".to_vec()),
            gid: 0,
            group: Some(b"root".to_vec()),
            mtime: None,
            rdev: None,
            flags: Flags::default(),
            xattrs: Vec::new(),
            hardlink: None,
            holes: Vec::new(),
            partial: false,
        }
    }

    /// Returns the value of the extended attribute `name`.
    pub fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// Says whether the entry is a node: something that git does not hold at all.
    pub fn is_node(&self) -> bool {
        matches!(self.kind, FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block)
    }

    /// Completes an entry read from the text by what git knows: see [`DirMetadata::lookup`].
    pub fn held_by_git(mut self, git: GitKind) -> Result<Self> {
        if self.is_node() {
            return Err(Error::new(Kind::Corrupt, "recorded as a node, but git has content for it"));
        }
        match git {
            GitKind::Symlink => (self.kind, self.mode) = (FileKind::Symlink, 0o777),
            // The text never says 0644, so this mode is one that was not written.
            GitKind::Executable if self.mode == 0o644 => self.mode = 0o755,
            GitKind::Executable | GitKind::File => (),
        }
        Ok(self)
    }
}

impl DirMetadata {
    /// Returns a directory about which nothing is known.
    pub fn new() -> Self {
        Self { dir: Metadata::new(FileKind::Dir), entries: BTreeMap::new() }
    }

    /// Returns what is recorded about the entry `name` that git holds as `git`.
    ///
    /// The text does not repeat what git knows; this puts the two together. A node that git holds as well is refused.
    pub fn lookup(&self, name: &[u8], git: GitKind) -> Result<Metadata> {
        match self.entries.get(name) {
            Some(recorded) => recorded
                .clone()
                .held_by_git(git)
                .map_err(|error| error.wrap(format!("metadata of '{}' does not fit its content", name.escape_ascii()))),
            None => Metadata::new(FileKind::File).held_by_git(git),
        }
    }
}

impl Default for DirMetadata {
    fn default() -> Self {
        Self::new()
    }
}

/// Attributes that the kernel gives by itself: a record without them says nothing about them.
const KERNEL_LABELS: [&[u8]; 4] = [b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm"];

/// Returns the names of the fields in which `have` (as captured) is not as `want` (as recorded) says.
///
/// Owners are equal if their names are, or, where one of them has no name, their numbers. A time that was not
/// recorded is not compared, nor is a label that the kernel gives by itself.
pub fn differences(want: &Metadata, have: &Metadata) -> Vec<&'static str> {
    let is_link = want.kind == FileKind::Symlink;
    let checks = [
        ("type", want.kind != have.kind),
        ("link", want.hardlink != have.hardlink),
        ("mode", !is_link && want.mode != have.mode),
        ("owner", !same_id((&want.user, want.uid), (&have.user, have.uid))),
        ("group", !same_id((&want.group, want.gid), (&have.group, have.gid))),
        ("mtime", want.mtime.is_some() && want.mtime != have.mtime),
        ("rdev", want.rdev != have.rdev),
        ("flags", want.flags != have.flags),
        ("holes", want.holes != have.holes),
        ("partial", want.partial != have.partial),
        ("xattrs", !xattrs_in_question(want, have).eq(want.xattrs.iter())),
    ];
    checks.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

type OptionalName = Option<Vec<u8>>;

fn same_id(want: (&OptionalName, u32), have: (&OptionalName, u32)) -> bool {
    match (want.0, have.0) {
        (Some(want), Some(have)) => want == have,
        _ => want.1 == have.1,
    }
}

/// Returns the attributes of `have` about which `want` says something.
fn xattrs_in_question<'a>(want: &Metadata, have: &'a Metadata) -> impl Iterator<Item = &'a (Vec<u8>, Vec<u8>)> {
    have.xattrs.iter().filter(|(name, _)| want.xattr(name).is_some() || !KERNEL_LABELS.contains(&name.as_slice()))
}

/// Returns the mode that the text leaves out; that of a node is always written.
fn default_mode(kind: FileKind) -> u16 {
    match kind {
        FileKind::File => 0o644,
        FileKind::Dir => 0o755,
        FileKind::Symlink => 0o777,
        FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => 0,
    }
}

impl fmt::Display for Metadata {
    /// Writes what a listing shows before time and name: `-rwsr-xr-x root root`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = text::escaped_id(self.user.as_deref(), self.uid);
        let group = text::escaped_id(self.group.as_deref(), self.gid);
        write!(f, "{} {owner} {group}", mode_string(self.kind, self.mode))?;
        match self.rdev {
            Some((major, minor)) => write!(f, " {major},{minor}"),
            None => Ok(()),
        }
    }
}

/// Returns type and mode as `ls` shows them.
fn mode_string(kind: FileKind, mode: u16) -> String {
    let kind = match kind {
        FileKind::File => '-',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::Char => 'c',
        FileKind::Block => 'b',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Returns the bytes for a message: short, and without anything that a terminal obeys.
fn shown(bytes: &[u8]) -> String {
    const MAX_SHOWN: usize = 100;
    let cut = &bytes[..bytes.len().min(MAX_SHOWN)];
    let dots = if cut.len() < bytes.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_shows_the_bits_as_ls_does() {
        let mut metadata = Metadata::new(FileKind::File);
        metadata.mode = 0o4755;
        assert_eq!(metadata.to_string(), "-rwsr-xr-x root root");
        metadata.mode = 0o7640;
        (metadata.user, metadata.uid) = (Some(b"a\x1bb".to_vec()), 5);
        (metadata.group, metadata.gid) = (None, 7);
        assert_eq!(metadata.to_string(), "-rwSr-S--T a%1Bb 7");
        let null = Metadata { mode: 0o666, rdev: Some((1, 3)), ..Metadata::new(FileKind::Char) };
        assert_eq!(null.to_string(), "crw-rw-rw- root root 1,3");
    }

    #[test]
    fn git_completes_what_the_text_leaves_out() {
        let mut dir = DirMetadata::new();
        let owned = Metadata { uid: 5, user: None, ..Metadata::new(FileKind::File) };
        dir.entries.insert(b"tool".to_vec(), owned.clone());
        dir.entries.insert(b"fifo".to_vec(), Metadata::new(FileKind::Fifo));
        dir.entries.insert(b"private".to_vec(), Metadata { mode: 0o700, ..owned.clone() });
        let cases = [
            (&b"tool"[..], GitKind::File, FileKind::File, 0o644, 5),
            (b"tool", GitKind::Executable, FileKind::File, 0o755, 5),
            (b"tool", GitKind::Symlink, FileKind::Symlink, 0o777, 5),
            (b"private", GitKind::Executable, FileKind::File, 0o700, 5),
            (b"new", GitKind::Executable, FileKind::File, 0o755, 0),
        ];
        for (name, git, kind, mode, uid) in cases {
            let found = dir.lookup(name, git).unwrap();
            assert_eq!((found.kind, found.mode, found.uid), (kind, mode, uid), "{} {git:?}", name.escape_ascii());
        }
        assert_eq!(dir.lookup(b"fifo", GitKind::File).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn each_field_that_differs_is_named() {
        let want = Metadata::new(FileKind::File);
        let check = |change: fn(&mut Metadata), expected: &[&str]| {
            let mut have = want.clone();
            change(&mut have);
            assert_eq!(differences(&want, &have), expected);
        };
        check(|_| (), &[]);
        check(|m| m.mode = 0o600, &["mode"]);
        check(|m| (m.user, m.uid) = (Some(b"alice".to_vec()), 0), &["owner"]);
        check(|m| m.uid = 5, &[]); // the same name under another number
        check(|m| (m.user, m.uid) = (None, 5), &["owner"]);
        check(|m| (m.group, m.gid) = (None, 5), &["group"]);
        check(|m| m.mtime = Some(Time { secs: 1, nanos: 0 }), &[]); // no time was recorded
        check(|m| m.xattrs = vec![(b"user.a".to_vec(), vec![])], &["xattrs"]);
        check(|m| m.xattrs = vec![(b"security.selinux".to_vec(), vec![])], &[]);
        check(|m| m.flags = Flags::IMMUTABLE, &["flags"]);
        check(|m| m.holes = vec![(0, 4096)], &["holes"]);
        check(|m| m.hardlink = Some(b"a".to_vec()), &["link"]);
        check(|m| (m.kind, m.rdev) = (FileKind::Char, Some((1, 3))), &["type", "rdev"]);
        let mut labelled = want.clone();
        labelled.xattrs = vec![(b"security.selinux".to_vec(), b"a".to_vec())];
        assert_eq!(differences(&labelled, &want), ["xattrs"]);
        let timed = Metadata { mtime: Some(Time { secs: 1, nanos: 1 }), ..want.clone() };
        assert_eq!(differences(&timed, &want), ["mtime"]);
    }
}
