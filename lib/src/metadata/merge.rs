//! Joins two versions of a directory's metadata that were changed apart.
//!
//! The rules are in `docs/formats/metadata.md`. The work is done on the text of each key, which is equal exactly when
//! the values are; only the result of joining two changes is read again, to see that it makes sense.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::text::{self, Entries};
use crate::error::{Context, Result};

/// The outcome of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The merged text; where there are conflicts, with markers that no reader accepts.
    pub bytes: Vec<u8>,
    /// Names of the entries in conflict, sorted; `.`, the directory itself, comes first.
    pub conflicts: Vec<Vec<u8>>,
}

/// Merges what `ours` and `theirs` changed since `base`, which is empty if they have no common version.
///
/// All three are read line by line, so a large directory takes no more memory than its text.
pub fn merge(base: &[u8], ours: &[u8], theirs: &[u8]) -> Result<Merged> {
    let base = if base.is_empty() { NOTHING } else { base };
    let mut sides = [Side::open("the base", base)?, Side::open("our side", ours)?, Side::open("their side", theirs)?];
    let mut merged = Merged { bytes: text::first_line(), conflicts: Vec::new() };
    merged.add(b".", sides.each_ref().map(|side| Some(side.dir_line)));
    while let Some(name) = sides.iter().filter_map(Side::name).min().map(<[u8]>::to_vec) {
        let [base, ours, theirs] = &mut sides;
        merged.add(&name, [base.take(&name)?, ours.take(&name)?, theirs.take(&name)?]);
    }
    Ok(merged)
}

const NOTHING: &[u8] = b"git-devops metadata 1\n.\n";

/// One of the three versions, with the line that comes next.
struct Side<'a> {
    what: &'static str,
    dir_line: &'a [u8],
    entries: Entries<'a>,
    next: Option<(&'a [u8], Vec<u8>)>,
}

impl<'a> Side<'a> {
    fn open(what: &'static str, bytes: &'a [u8]) -> Result<Self> {
        let entries = Entries::new(bytes).context(|| format!("cannot read {what} of the merge"))?;
        let dir_line = bytes.split(|&b| b == b'\n').nth(1).expect("BUG: a text that was read has two lines");
        let mut side = Self { what, dir_line, entries, next: None };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<()> {
        let line = self.entries.next_line().context(|| format!("cannot read {} of the merge", self.what))?;
        self.next = line.map(|(line, name, _)| (line, name));
        Ok(())
    }

    fn name(&self) -> Option<&[u8]> {
        self.next.as_ref().map(|(_, name)| name.as_slice())
    }

    /// Returns the line of `name`, if it is the next one, and goes on to the one after it.
    fn take(&mut self, name: &[u8]) -> Result<Option<&'a [u8]>> {
        if self.name() != Some(name) {
            return Ok(None);
        }
        let line = self.next.take().map(|(line, _)| line);
        self.advance()?;
        Ok(line)
    }
}

impl Merged {
    fn add(&mut self, name: &[u8], versions: [Option<&[u8]>; 3]) {
        match join(name, versions) {
            Joined::Gone => (),
            Joined::Line(line) => self.put(&[&line, b"\n"]),
            Joined::Conflict => {
                let [_, ours, theirs] = versions;
                self.put(&[b"<<<<<<< ours\n"]);
                ours.iter().for_each(|line| self.put(&[line, b"\n"]));
                self.put(&[b"=======\n"]);
                theirs.iter().for_each(|line| self.put(&[line, b"\n"]));
                self.put(&[b">>>>>>> theirs\n"]);
                self.conflicts.push(name.to_vec());
            }
        }
    }

    fn put(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }
}

/// What became of one entry.
enum Joined<'a> {
    Gone,
    Line(Cow<'a, [u8]>),
    Conflict,
}

fn join<'a>(name: &[u8], [base, ours, theirs]: [Option<&'a [u8]>; 3]) -> Joined<'a> {
    let same = if ours == theirs || theirs == base {
        ours
    } else if ours == base {
        theirs
    } else {
        let base = base.map(fields).unwrap_or_default();
        return match (ours.map(fields), theirs.map(fields)) {
            (Some(ours), Some(theirs)) => join_fields(name, &base, &ours, &theirs),
            (Some(left), None) | (None, Some(left)) if only_mtime_differs(&base, &left) => Joined::Gone,
            _ => Joined::Conflict,
        };
    };
    same.map_or(Joined::Gone, |line| Joined::Line(line.into()))
}

/// The fields (`key=value`) of a line, by a name that is the same for every way to write one key.
type Fields<'a> = BTreeMap<&'a [u8], &'a [u8]>;

const MTIME: &[u8] = b"mtime";
const ACL: &[u8] = b"xattr.system.posix_acl_access";

fn fields(line: &[u8]) -> Fields<'_> {
    let fields = line.split(|&b| b == b' ').skip(1);
    fields.map(|field| (key(field), field)).collect()
}

fn key(field: &[u8]) -> &[u8] {
    let key = field.split(|&b| b == b'=').next().unwrap_or_default();
    match key {
        b"uid" => b"user",
        b"gid" => b"group",
        key => key.strip_suffix(b":").unwrap_or(key),
    }
}

fn only_mtime_differs(a: &Fields, b: &Fields) -> bool {
    a.keys().chain(b.keys()).all(|key| *key == MTIME || a.get(key) == b.get(key))
}

fn join_fields<'a>(name: &[u8], base: &Fields<'a>, ours: &Fields<'a>, theirs: &Fields<'a>) -> Joined<'a> {
    let mut joined = Fields::new();
    let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    for key in keys {
        let (base, ours, theirs) = (base.get(key), ours.get(key), theirs.get(key));
        let field = match () {
            () if ours == theirs || theirs == base => ours,
            () if ours == base => theirs,
            () if *key == MTIME => later(ours, theirs),
            () => return Joined::Conflict,
        };
        field.map(|field| joined.insert(key, field));
    }
    // What the mode and the ACL say about the group is the same thing twice: both come from one side.
    let about_group = |fields: &Fields<'a>| [&b"mode"[..], ACL].map(|key| fields.get(key).copied());
    let is_mixed = about_group(&joined) != about_group(ours) && about_group(&joined) != about_group(theirs);
    let has_acl = [&joined, ours, theirs].iter().any(|fields| fields.contains_key(ACL));
    if ours.get(&b"type"[..]) != theirs.get(&b"type"[..]) || (is_mixed && has_acl) {
        return Joined::Conflict;
    }
    match text::line_of_fields(name, joined.into_values()) {
        Ok(Some(line)) => Joined::Line(line.into()),
        Ok(None) => Joined::Gone,
        Err(_) => Joined::Conflict,
    }
}

/// Returns the later of two times; the one there is, if a side does not record it any more.
fn later<'m, 'a>(ours: Option<&'m &'a [u8]>, theirs: Option<&'m &'a [u8]>) -> Option<&'m &'a [u8]> {
    let time = |field: &Option<&&[u8]>| field.and_then(|field| text::decode_time(&field[b"mtime=".len()..]));
    [ours, theirs].into_iter().max_by_key(time).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::any_dir;
    use super::super::{DirMetadata, Metadata};
    use super::*;
    use crate::error::Kind;
    use crate::safepath::{FileKind, Time};
    use proptest::prelude::*;

    fn text(lines: &str) -> Vec<u8> {
        let dir = if lines.starts_with('.') { "" } else { ".\n" };
        let end = if lines.is_empty() { "" } else { "\n" };
        format!("git-devops metadata 1\n{dir}{lines}{end}").into_bytes()
    }

    /// Shows the merged lines; conflicts as `ours|theirs`.
    fn merged(base: &str, ours: &str, theirs: &str) -> String {
        let merged = merge(&text(base), &text(ours), &text(theirs)).unwrap();
        let shown = String::from_utf8(merged.bytes.clone()).unwrap();
        let read = DirMetadata::decode(&merged.bytes);
        assert_eq!(read.is_err(), !merged.conflicts.is_empty(), "{shown}");
        let shown = shown.replace("<<<<<<< ours\n", "<").replace("=======\n", "|").replace(">>>>>>> theirs\n", ">\n");
        let shown = shown.replace("\n|", "|").replace("\n>", ">");
        shown.strip_prefix("git-devops metadata 1\n").unwrap().trim_start_matches(".\n").trim_end().to_owned()
    }

    #[test]
    fn each_key_is_merged_by_itself() {
        let cases = [
            // base, ours, theirs, merged
            ("", "a mode=0600", "b mode=0600", "a mode=0600\nb mode=0600"),
            ("", "a mode=0600", "a mode=0600", "a mode=0600"),
            ("", "a mode=0600", "a gid=7", "a mode=0600 gid=7"),
            ("a mode=0600", "a mode=0640", "a mode=0600 uid=5", "a mode=0640 uid=5"),
            (
                "a mode=0600",
                "a mode=0600 xattr.user.b=1",
                "a mode=0600 xattr.user.a=1",
                "a mode=0600 xattr.user.a=1 xattr.user.b=1",
            ),
            ("a mode=0600 uid=5", "a mode=0600", "a mode=0640 uid=5", "a mode=0640"),
            ("a mode=0600 mtime=5", "", "a mode=0600 mtime=5", ""),
            ("a mode=0600 mtime=5", "a mode=0600 mtime=6", "a mode=0600 mtime=5.5", "a mode=0600 mtime=6"),
            ("a mtime=5", "a mtime=-1.5", "a mtime=-1.25", "a mtime=-1.25"),
            ("a mode=0600 mtime=5", "a mode=0600", "a mode=0600 mtime=6", "a mode=0600 mtime=6"),
            ("a mode=0600 mtime=5", "", "a mode=0600 mtime=6", ""), // removed, and touched on the other side
            (". partial=yes", ".", ". mode=0700 partial=yes", ". mode=0700"),
            // conflicts
            ("a mode=0600", "a mode=0640", "a mode=0644 gid=7", "BAD"),
            ("a mode=0600", "a mode=0640", "a mode=0660", "<a mode=0640|a mode=0660>"),
            ("a uid=5", "a user=x/5", "a uid=6", "<a user=x/5|a uid=6>"),
            ("a xattr.user.a=x", "a xattr.user.a=y", "a xattr.user.a:=AA==", "BAD"),
            ("a xattr.user.a=x", "a xattr.user.a=y", "a xattr.user.a:=AQ==", "<a xattr.user.a=y|a xattr.user.a:=AQ==>"),
            ("a mode=0600", "", "a mode=0640", "<|a mode=0640>"),
            ("a mode=0600", "a mode=0640", "", "<a mode=0640|>"),
            (". mode=0700", ". mode=0711", ". mode=0750", "<. mode=0711|. mode=0750>"),
            ("", "a type=fifo mode=0600", "a mode=0600 gid=7", "<a type=fifo mode=0600|a mode=0600 gid=7>"),
            ("", "a type=fifo mode=0600", "a type=socket mode=0600", "<a type=fifo mode=0600|a type=socket mode=0600>"),
            (
                "a mode=0640 xattr.system.posix_acl_access=x",
                "a mode=0660 xattr.system.posix_acl_access=x",
                "a mode=0640 xattr.system.posix_acl_access=y",
                "<a mode=0660 xattr.system.posix_acl_access=x|a mode=0640 xattr.system.posix_acl_access=y>",
            ),
        ];
        for (base, ours, theirs, expected) in cases {
            if expected == "BAD" {
                assert_eq!(merge(&text(base), &text(ours), &text(theirs)).unwrap_err().kind(), Kind::Corrupt);
            } else {
                assert_eq!(merged(base, ours, theirs), expected, "{base} | {ours} | {theirs}");
            }
        }
    }

    #[test]
    fn conflicts_are_named_and_written_so_that_no_reader_takes_them() {
        let merged = merge(b"", &text("a mode=0600\nb uid=5"), &text("a mode=0640\nb uid=6")).unwrap();
        assert_eq!(merged.conflicts, [b"a", b"b"]);
        assert_eq!(
            String::from_utf8(merged.bytes.clone()).unwrap(),
            "git-devops metadata 1\n.\n\
             <<<<<<< ours\na mode=0600\n=======\na mode=0640\n>>>>>>> theirs\n\
             <<<<<<< ours\nb uid=5\n=======\nb uid=6\n>>>>>>> theirs\n"
        );
        let error = DirMetadata::decode(&merged.bytes).unwrap_err();
        assert_eq!(error.to_string(), "metadata line 3: the conflict of a merge is not resolved yet");
        let error = merge(b"", &merged.bytes, &text("")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read our side of the merge");
    }

    /// Changes the `which`-th key of an entry, and nothing else.
    fn change(metadata: &mut Metadata, which: usize) {
        match which {
            0 => metadata.mode ^= 0o070,
            1 => (metadata.user, metadata.uid) = (Some(b"changed".to_vec()), metadata.uid ^ 1),
            2 => (metadata.group, metadata.gid) = (Some(b"changed".to_vec()), metadata.gid ^ 1),
            3 => metadata.mtime = Some(Time { secs: 77, nanos: 77 }),
            4 => metadata.hardlink = Some(b"changed".to_vec()),
            5 => metadata.xattrs.push((b"\x01early".to_vec(), b"changed".to_vec())),
            _ => metadata.xattrs.push((b"\xfflate-name".to_vec(), b"\x01".to_vec())),
        }
        metadata.xattrs.sort();
    }

    proptest! {
        #[test]
        fn what_one_side_changed_is_what_comes_out(base in any_dir(), side in any_dir()) {
            let (base, side) = (base.encode(), side.encode());
            let expected = Merged { bytes: side.clone(), conflicts: vec![] };
            prop_assert_eq!(&merge(&base, &side, &base).unwrap(), &expected);
            prop_assert_eq!(&merge(&base, &base, &side).unwrap(), &expected);
            prop_assert_eq!(&merge(&base, &side, &side).unwrap(), &expected);
        }

        #[test]
        fn the_sides_are_equal(base in any_dir(), ours in any_dir(), theirs in any_dir()) {
            // The same names on all sides, so that lines meet.
            let rename = |dir: DirMetadata| DirMetadata { entries: dir.entries.into_values().enumerate().map(|(i, m)| (vec![b'a' + i as u8], m)).collect(), ..dir };
            let [base, ours, theirs] = [base, ours, theirs].map(|dir| rename(dir).encode());
            let one = merge(&base, &ours, &theirs).unwrap();
            let other = merge(&base, &theirs, &ours).unwrap();
            prop_assert_eq!(&one.conflicts, &other.conflicts);
            prop_assert_eq!(one.bytes.len(), other.bytes.len());
            if one.conflicts.is_empty() {
                prop_assert_eq!(&one.bytes, &other.bytes);
            }
            prop_assert_eq!(DirMetadata::decode(&one.bytes).is_ok(), one.conflicts.is_empty());
        }

        #[test]
        fn changes_of_different_keys_never_conflict(base in any_dir(), left in 0..7_usize, step in 1..7_usize, name in any::<prop::sample::Index>()) {
            let mut base = base;
            base.entries.insert(b"x".to_vec(), Metadata { mode: 0o600, mtime: Some(Time { secs: 5, nanos: 0 }), ..Metadata::new(FileKind::File) });
            for metadata in base.entries.values_mut() {
                metadata.hardlink = None; // so that each change of it is one
            }
            let name = name.get(&base.entries.keys().cloned().collect::<Vec<_>>()).clone();
            let changed = |which: &[usize]| {
                let mut dir = base.clone();
                which.iter().for_each(|&which| change(dir.entries.get_mut(&name).unwrap(), which));
                dir
            };
            let right = (left + step) % 7;
            let both = changed(&[left, right]);
            // A line that vanishes because it went back to the default looks like one that was removed.
            prop_assume!([changed(&[left]), changed(&[right])].iter().all(|dir| dir.entries[&name] != Metadata::new(FileKind::File)));
            let merged = merge(&base.encode(), &changed(&[left]).encode(), &changed(&[right]).encode()).unwrap();
            prop_assert_eq!(&merged.conflicts, &Vec::<Vec<u8>>::new());
            prop_assert_eq!(merged.bytes, both.encode());
        }
    }
}
