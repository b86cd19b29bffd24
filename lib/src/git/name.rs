//! Which path a file of the work tree has in a commit, and back. Format: `docs/formats/tree-layout.md`.
//!
//! Pure: bytes in, bytes out. The rules for hostile names are wider than git's own checks, never narrower, so
//! that every tree of ours passes `git fsck --strict` and no git interprets what we store.

use std::borrow::Cow;

use crate::error::{Error, Reason, Result};
use crate::safepath::check_path;

/// The directory that is ours in every commit.
pub const OURS: &[u8] = b".git-devops";

const ALT: &[u8] = b".git-devops/alt/";
const META: &[u8] = b".git-devops/meta/";
/// The name of the file that holds the metadata of the directory it lies in.
pub const META_LEAF: &[u8] = b".m";

/// What a path in a commit stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored<'a> {
    /// The file of the work tree with this same path.
    File(&'a [u8]),
    /// The file of the work tree with this path, which git must not see.
    Alt(Vec<u8>),
    /// The metadata of the entries of this directory; empty for the root.
    Meta(Vec<u8>),
    /// Something else below `.git-devops/`, or a path that we never write.
    Other,
}

/// Returns the path in a commit of the file at `path` in the work tree.
///
/// `path` is relative and was checked by [`check_path`].
pub fn stored_path(path: &[u8]) -> Cow<'_, [u8]> {
    if !is_hostile_path(path) {
        return Cow::Borrowed(path);
    }
    let mut stored = ALT.to_vec();
    escape_path(path, |_| false, &mut stored);
    Cow::Owned(stored)
}

/// Returns the path in a commit of the metadata of the entries of the directory `dir`; empty means the root.
pub fn meta_path(dir: &[u8]) -> Vec<u8> {
    let mut stored = META.to_vec();
    if !dir.is_empty() {
        escape_path(dir, |component| component == META_LEAF, &mut stored);
        stored.push(b'/');
    }
    stored.extend_from_slice(META_LEAF);
    stored
}

/// Returns the directory in a commit that holds the metadata of the directory `dir` and of all below it.
pub fn meta_dir(dir: &[u8]) -> Vec<u8> {
    let mut stored = meta_path(dir);
    stored.truncate(stored.len() - META_LEAF.len() - 1);
    stored
}

/// Returns where in a commit a file or directory lies that git must not see, or that leads to one.
pub fn alt_path(path: &[u8]) -> Vec<u8> {
    let mut stored = ALT.to_vec();
    escape_path(path, |_| false, &mut stored);
    stored
}

/// Returns the name that a component of a path below `.git-devops/alt` or `.git-devops/meta` stands for; only what we would write is accepted.
pub fn unescape(component: &[u8]) -> Result<Vec<u8>> {
    let refuse = || Error::refused(Reason::TreeName, format!("'{}' is not a name that we write", component.escape_ascii()));
    unescape_path(component).ok_or_else(refuse)
}

/// Returns what the path `stored` in a commit stands for; only a path that we would write ourselves stands for a file.
pub fn work_path(stored: &[u8]) -> Stored<'_> {
    if let Some(escaped) = stored.strip_prefix(ALT) {
        match unescape_path(escaped) {
            Some(path) if check_path(&path).is_ok() && *stored_path(&path) == *stored => Stored::Alt(path),
            _ => Stored::Other,
        }
    } else if let Some(escaped) = stored.strip_prefix(META) {
        match escaped.strip_suffix(META_LEAF).and_then(|dir| unescape_path(dir.strip_suffix(b"/").unwrap_or(dir))) {
            Some(dir) if (dir.is_empty() || check_path(&dir).is_ok()) && meta_path(&dir) == stored => Stored::Meta(dir),
            _ => Stored::Other,
        }
    } else if check_path(stored).is_ok() && !is_hostile_path(stored) {
        Stored::File(stored)
    } else {
        Stored::Other
    }
}

/// Says whether the path `stored` in a commit is below our own directory, which is never written into a work tree.
pub fn is_ours(stored: &[u8]) -> bool {
    stored.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Says whether one component of a path in a commit is a name that we write: no hostile one, and none that leads elsewhere.
pub(super) fn is_stored_name(name: &[u8]) -> bool {
    let is_plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0);
    is_plain && name.len() <= MAX_STORED_NAME && !name.split(|&b| b == b'\\').any(is_hostile)
}

/// Says whether git may take a symlink of this name for one of its files that must not be symlinks, though it would take a file.
pub(super) fn is_odd_symlink(name: &[u8]) -> bool {
    let folded = fold(name);
    name.contains(&b'~') || [&b".gitignore"[..], b".mailmap"].iter().any(|odd| folded.starts_with(odd))
}

/// A component of 255 bytes with every piece escaped.
pub(super) const MAX_STORED_NAME: usize = 255 * 2;

fn is_hostile_path(path: &[u8]) -> bool {
    is_ours(path) || path.split(|&b| b == b'/' || b == b'\\').any(is_hostile)
}

/// Says whether git could take one piece of a component for one of its own files; see the format's rules 1 and 2.
fn is_hostile(piece: &[u8]) -> bool {
    // Nearly every name is done here: those that count start with one of these, or with an ignorable code point.
    if !matches!(piece.first(), Some(b'.' | b'g' | b'G' | b'~' | 0xe2 | 0xef)) {
        return false;
    }
    let folded = fold(piece);
    is_git_file(&folded) || is_short_name(&folded)
}

fn is_git_file(folded: &[u8]) -> bool {
    [&b".git"[..], b".gitmodules", b".gitattributes"].iter().any(|name| {
        let Some(rest) = folded.strip_prefix(*name) else { return false };
        let after = rest.iter().find(|b| !matches!(b, b'.' | b' '));
        after.is_none_or(|&b| b == b':' || b > 0x7f)
    })
}

fn is_short_name(folded: &[u8]) -> bool {
    let starts_right = |stem: &[u8]| stem.is_empty() || stem == b"g" || stem.starts_with(b"gi");
    folded.windows(2).enumerate().any(|(at, pair)| pair[0] == b'~' && pair[1].is_ascii_digit() && starts_right(&folded[..at]))
}

/// Returns `piece` in lower case and without the code points that HFS+ ignores.
fn fold(piece: &[u8]) -> Vec<u8> {
    let mut folded = Vec::with_capacity(piece.len());
    let mut rest = piece;
    while let Some(&first) = rest.first() {
        rest = match rest {
            [0xe2, 0x80, 0x8c..=0x8f | 0xaa..=0xae, after @ ..] => after,
            [0xe2, 0x81, 0xaa..=0xaf, after @ ..] => after,
            [0xef, 0xbb, 0xbf, after @ ..] => after,
            _ => {
                folded.push(first.to_ascii_lowercase());
                &rest[1..]
            }
        };
    }
    folded
}

fn escape_path(path: &[u8], is_reserved: impl Fn(&[u8]) -> bool, out: &mut Vec<u8>) {
    for (at, component) in path.split(|&b| b == b'/').enumerate() {
        if at > 0 {
            out.push(b'/');
        }
        if is_reserved(component) || at == 0 && component == OURS {
            escape_first(component, out);
        } else {
            escape_pieces(component, out);
        }
    }
}

fn escape_pieces(component: &[u8], out: &mut Vec<u8>) {
    for (at, piece) in component.split(|&b| b == b'\\').enumerate() {
        if at > 0 {
            out.push(b'\\');
        }
        if piece.first() == Some(&b'%') || is_hostile(piece) {
            escape_first(piece, out);
        } else {
            out.extend_from_slice(piece);
        }
    }
}

fn escape_first(piece: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("%{:02x}", piece[0]).as_bytes());
    out.extend_from_slice(&piece[1..]);
}

/// Undoes the escapes at the start of pieces; the caller compares with the canonical form.
fn unescape_path(escaped: &[u8]) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    let mut is_start = true;
    while let Some((&first, after)) = rest.split_first() {
        if is_start && first == b'%' {
            path.push(hex_digit(*after.first()?)? << 4 | hex_digit(*after.get(1)?)?);
            rest = &after[2..];
            is_start = false;
        } else {
            path.push(first);
            rest = after;
            is_start = first == b'/' || first == b'\\';
        }
    }
    Some(path)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_format_page_hold() {
        let page = include_str!("../../../docs/formats/tree-layout.md");
        let rows = page.lines().skip_while(|line| !line.starts_with("| work-tree path")).skip(2);
        let mut count = 0;
        for row in rows.take_while(|row| row.starts_with('|')) {
            let [_, from, to, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let (from, to) = (from.trim().trim_matches('`'), to.trim().trim_matches('`'));
            match from.strip_prefix("metadata of `") {
                Some(dir) => assert_eq!(meta_path(dir.as_bytes()).escape_ascii().to_string(), to.escape_default().to_string()),
                None => assert_eq!(*stored_path(from.as_bytes()), *to.as_bytes(), "{from}"),
            }
            count += 1;
        }
        assert_eq!(count, 10);
    }

    #[test]
    fn a_name_that_git_reads_something_into_is_hostile() {
        let hostile = [
            ".git",
            ".GIT",
            ".Git",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".git\u{206a}",
            "git~1",
            "GIT~1",
            "git~2",
            ".git ",
            ".git...",
            ".git . .",
            ".git::$INDEX_ALLOCATION",
            ".git:x",
            "a\\.git",
            "a\\b\\.git\\c",
            ".gitmodules",
            ".GITMODULES ",
            "gitmod~1",
            "gi7eba~1",
            "gi7d29~1",
            "gitatt~4",
            ".gitattributes",
            ".gitattributes:x",
            "~1000000",
            "g~100000",
            "a\\git~1",
        ];
        for name in hostile {
            assert!(is_hostile_path(name.as_bytes()), "{name}");
            assert!(is_hostile_path(format!("a/{name}/b").as_bytes()), "{name}");
        }
        assert!(is_hostile_path(b".git\xff"), "git takes malformed UTF-8 for the end");
        for name in
            [".gitignore", ".github", ".gitx", "git", "x.git", "file~1", "a~1", "gx~1", "~a", "g~", ".gi", "a\\x2db", ".mailmap"]
        {
            assert!(!is_hostile_path(name.as_bytes()), "{name}");
        }
        assert!(is_hostile_path(b".git-devops/x") && !is_hostile_path(b"a/.git-devops") && !is_hostile_path(b".git-devopsx"));
    }

    #[test]
    fn only_a_path_that_we_would_write_stands_for_a_file() {
        let others = [
            ".git-devops/alt/etc/fstab",
            ".git-devops/alt/%2Egit",
            ".git-devops/alt/%2egi%74",
            ".git-devops/alt/.git",
            ".git-devops/alt/",
            ".git-devops/alt",
            ".git-devops/alt/%2egit/../x",
            ".git-devops/alt//%2egit",
            ".git-devops/alt/%2",
            ".git-devops/alt/%00",
            ".git-devops/alt/%2fetc",
            ".git-devops/alt/%61/%2egit",
            ".git-devops/meta/x",
            ".git-devops/meta/a//.m",
            ".git-devops/meta/.m/.m",
            ".git-devops/meta//.m",
            ".git-devops/meta/x.m",
            ".git-devops/meta/..//.m",
            ".git-devops/attributes",
            ".git-devops",
            "",
            "/x",
            "a/../b",
            ".git/config",
            "a//b",
            "a/",
        ];
        for stored in others {
            assert_eq!(work_path(stored.as_bytes()), Stored::Other, "{stored}");
        }
        assert_eq!(work_path(b"%2egit"), Stored::File(b"%2egit"));
        assert_eq!(work_path(b".git-devops/meta/.m"), Stored::Meta(vec![]));
    }

    /// Returns components made of what the rules look at, so that hostile and nearly hostile ones are common.
    fn component() -> impl Strategy<Value = Vec<u8>> {
        let atoms = [
            ".git",
            ".GIT",
            "git",
            "~1",
            "~",
            "%",
            "%2e",
            ".m",
            ".",
            " ",
            ":",
            "\\",
            "\u{200c}",
            "\u{feff}",
            "modules",
            "attributes",
            ".git-devops",
            "g",
            "gi",
            "x",
            "-",
        ];
        let atom = prop_oneof![
            4 => proptest::sample::select(atoms.to_vec()).prop_map(|atom| atom.as_bytes().to_vec()),
            1 => proptest::num::u8::ANY.prop_map(|byte| vec![byte]),
        ];
        proptest::collection::vec(atom, 1..5)
            .prop_map(|atoms| atoms.concat())
            .prop_filter("not a name", |c| check_path(c).is_ok() && !c.contains(&b'/'))
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(component(), 1..4).prop_map(|components| components.join(&b'/'))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_stored_path_leads_back_to_its_file(path in path()) {
            let stored = stored_path(&path);
            let back = match work_path(&stored) {
                Stored::File(path) => path.to_vec(),
                Stored::Alt(path) => path,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(&back, &path);
            prop_assert!(stored.split(|&b| b == b'/' || b == b'\\').all(|piece| !is_hostile(piece)));
            let meta = meta_path(&path);
            prop_assert_eq!(work_path(&meta), Stored::Meta(path));
            prop_assert!(meta.split(|&b| b == b'/' || b == b'\\').all(|piece| !is_hostile(piece)));
        }

        #[test]
        fn no_two_files_share_a_stored_path(paths in proptest::collection::btree_set(path(), 0..50)) {
            let stored: BTreeSet<_> = paths.iter().map(|path| stored_path(path)).collect();
            prop_assert_eq!(stored.len(), paths.len());
        }

        #[test]
        fn any_bytes_are_understood_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            for prefix in [&b""[..], ALT, META] {
                let stored = [prefix, &bytes].concat();
                match work_path(&stored) {
                    Stored::File(path) => prop_assert_eq!(&*stored_path(path), &stored[..]),
                    Stored::Alt(path) => prop_assert_eq!(&*stored_path(&path), &stored[..]),
                    Stored::Meta(dir) => prop_assert_eq!(meta_path(&dir), stored),
                    Stored::Other => (),
                }
            }
        }
    }
}
