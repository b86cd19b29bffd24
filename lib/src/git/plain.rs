//! Objects that are plainly in order: those of which `git fsck --strict` says nothing, and what they refer to.
//!
//! Pure. What is taken here, git takes; what is not taken here, git may take, and has to be asked.

use super::object::{DIR, GITLINK, ObjectKind, SYMLINK, decode_oid, decode_tree, take_header};
use super::refs::check_ref_name;
use super::{Oid, name};

/// An object that another one refers to, and what it must be.
pub(super) type Link = (ObjectKind, Oid);

/// Returns what an object refers to, or `None` if only git can say whether it is in order.
pub(super) fn links(kind: ObjectKind, content: &[u8]) -> Option<Vec<Link>> {
    match kind {
        // What git asks of some blobs depends on their names, and trees with such names are not plain.
        ObjectKind::Blob => Some(Vec::new()),
        ObjectKind::Tree => of_tree(content),
        ObjectKind::Commit => of_commit(content),
        ObjectKind::Tag => of_tag(content),
    }
}

fn of_tree(content: &[u8]) -> Option<Vec<Link>> {
    let mut links = Vec::new();
    for entry in decode_tree(content).ok()? {
        if entry.oid.is_null() || entry.mode == SYMLINK && name::is_odd_symlink(&entry.name) {
            return None;
        }
        match entry.mode {
            DIR => links.push((ObjectKind::Tree, entry.oid)),
            // It stands for a commit of another repository.
            GITLINK => (),
            _ => links.push((ObjectKind::Blob, entry.oid)),
        }
    }
    Some(links)
}

fn of_commit(content: &[u8]) -> Option<Vec<Link>> {
    let mut rest = content;
    let mut links = vec![(ObjectKind::Tree, decode_oid(take_header(&mut rest, b"tree ")?)?)];
    while let Some(parent) = take_header(&mut rest, b"parent ") {
        links.push((ObjectKind::Commit, decode_oid(parent)?));
    }
    let author = take_header(&mut rest, b"author ")?;
    let committer = take_header(&mut rest, b"committer ")?;
    (is_person(author) && is_person(committer) && has_ended_headers(content)).then_some(links)
}

fn of_tag(content: &[u8]) -> Option<Vec<Link>> {
    let mut rest = content;
    let oid = decode_oid(take_header(&mut rest, b"object ")?)?;
    let kind = ObjectKind::from_name(std::str::from_utf8(take_header(&mut rest, b"type ")?).ok()?)?;
    let tag = std::str::from_utf8(take_header(&mut rest, b"tag ")?).ok()?;
    let is_name = check_ref_name(&format!("refs/tags/{tag}")).is_ok();
    let tagger = take_header(&mut rest, b"tagger ")?;
    (is_name && is_person(tagger) && rest.first() == Some(&b'\n') && has_ended_headers(content)).then(|| vec![(kind, oid)])
}

/// Says whether there is an end of the headers, and no NUL in them or after.
fn has_ended_headers(content: &[u8]) -> bool {
    let is_ended = content.ends_with(b"\n") || content.windows(2).any(|pair| pair == b"\n\n");
    is_ended && !content.contains(&0)
}

/// Says whether a line is `name <mail> seconds zone`.
fn is_person(line: &[u8]) -> bool {
    let decode = || {
        let (name, rest) = split_at(line, b'<')?;
        let (mail, rest) = split_at(rest, b'>')?;
        let (seconds, zone) = split_at(rest.strip_prefix(b" ")?, b' ')?;
        let is_text = name.len() > 1 && name.ends_with(b" ") && !name.contains(&b'>') && !mail.contains(&b'<');
        let is_number = seconds == b"0" || matches!(seconds, [b'1'..=b'9', ..]) && seconds.len() <= MAX_SECONDS;
        let is_zone = matches!(zone, [b'+' | b'-', digits @ ..] if digits.len() == 4 && digits.iter().all(u8::is_ascii_digit));
        Some(is_text && is_number && seconds.iter().all(u8::is_ascii_digit) && is_zone)
    };
    decode() == Some(true)
}

/// Digits of a time: for the next three thousand years.
const MAX_SECONDS: usize = 11;

fn split_at(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&b| b == byte)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::Git;
    use crate::git::object::object_id;

    const PERSON: &str = "A U Thor <a@b.c> 1700000000 +0100";

    fn commit(person: &str, rest: &str) -> Vec<u8> {
        let (tree, parent) = ("4b825dc642cb6eb9a060e54bf8d69288fbee4904", "1".repeat(40));
        format!("tree {tree}\nparent {parent}\nauthor {person}\ncommitter {person}\n{rest}").into_bytes()
    }

    #[test]
    fn what_an_object_refers_to_and_as_what() {
        let tree =
            [&b"40000 d\0"[..], &[1; 20], b"100644 f\0", &[2; 20], b"160000 g\0", &[3; 20], b"120000 h\0", &[4; 20]].concat();
        let of = |n: u8| super::super::object::oid_from([n; 20]);
        let expected = [(ObjectKind::Tree, of(1)), (ObjectKind::Blob, of(2)), (ObjectKind::Blob, of(4))];
        assert_eq!(links(ObjectKind::Tree, &tree).unwrap(), expected);
        let kinds = |links: Option<Vec<Link>>| links.map(|links| links.into_iter().map(|(kind, _)| kind).collect::<Vec<_>>());
        assert_eq!(kinds(links(ObjectKind::Commit, &commit(PERSON, "\nx\n"))), Some(vec![ObjectKind::Tree, ObjectKind::Commit]));
        let tag = format!("object {}\ntype tree\ntag v1/x\ntagger {PERSON}\n\nx\n", of(9));
        assert_eq!(links(ObjectKind::Tag, tag.as_bytes()), Some(vec![(ObjectKind::Tree, of(9))]));
    }

    /// Says whether stock git has anything to say about an object, whatever it refers to.
    fn git_complains(git: &Git, kind: ObjectKind, content: &[u8]) -> bool {
        let args = ["hash-object", "-w", "--literally", "-t", &kind.to_string(), "--stdin"];
        let oid = String::from_utf8(git.run_with_input(&args, content).unwrap()).unwrap().trim().to_owned();
        assert_eq!(oid, object_id(kind, content).unwrap().to_string());
        let said = git.output(&["fsck", "--strict", "--no-dangling", "--no-progress"], b"").unwrap();
        let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        let path = git.git_dir().join("objects").join(&oid[..2]).join(&oid[2..]);
        std::fs::remove_file(path).unwrap();
        said.lines().any(|line| line.contains(&format!(" {oid}:")) || line.starts_with("error: ") && line.contains(&oid))
    }

    #[test]
    fn nothing_is_plain_that_git_complains_of() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let person = |text: &str| commit(text, "\nx\n");
        let tag = |head: &str| format!("object 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n{head}").into_bytes();
        let tree = |entries: &[(&str, &[u8])]| {
            let entry = |(mode, name): &(&str, &[u8])| [mode.as_bytes(), b" ", name, b"\0", &[7; 20]].concat();
            entries.iter().flat_map(entry).collect::<Vec<u8>>()
        };
        let mut objects: Vec<(ObjectKind, Vec<u8>)> = Vec::new();
        for text in [
            "",
            "A",
            "A <a@b> 1 +0000",
            "A <a@b> 0 +0000",
            "A <a@b> 01 +0000",
            "A <a@b> 1 0000",
            "A <a@b> 1 +000",
            "A <a@b> 1 +00000",
            "A <a@b> x +0000",
            "A <a@b>  1 +0000",
            "A <a@b>1 +0000",
            "A<a@b> 1 +0000",
            "<a@b> 1 +0000",
            " <a@b> 1 +0000",
            "A <a<b> 1 +0000",
            "A> <a@b> 1 +0000",
            "A <a@b 1 +0000",
            "A <a@b> 1 +0000 ",
            "A <a@b> 99999999999999999999 +0000",
            "A <> 1 -0000",
            "A <a@b>",
        ] {
            objects.push((ObjectKind::Commit, person(text)));
            objects.push((ObjectKind::Tag, tag(&format!("type tree\ntag x\ntagger {text}\n\nx\n"))));
        }
        for rest in
            ["", "\n", "\nx", "gpgsig -\n \n x\n\ny\n", "encoding x", "author A <a@b> 1 +0000\n\n", "\nx\0y\n", "x\0y\n\n"]
        {
            objects.push((ObjectKind::Commit, commit(PERSON, rest)));
        }
        for head in [
            "type tree\ntag x\n\nx",
            "type x\ntag x\n",
            "tag x\ntype tree\n",
            "type tree\ntag x y\n",
            "type tree\ntag x..y\n",
            "",
        ] {
            objects.push((ObjectKind::Tag, tag(head)));
            objects.push((ObjectKind::Tag, tag(&format!("{head}tagger {PERSON}\n\nx\n"))));
            objects.push((ObjectKind::Tag, tag(&format!("{head}tagger {PERSON}\nmore x\n\nx\n"))));
        }
        let names: [&[u8]; 22] = [
            b"",
            b".",
            b"..",
            b".git",
            b".GIT",
            b"git~1",
            b".gitmodules",
            b"GITMOD~1",
            b"gi7eba~1",
            b".gitattributes",
            b".gitignore",
            b".mailmap",
            b".GitIgnore",
            b".gitignore .",
            b".mailmap:x",
            b"mailma~1",
            b"maba30~1",
            b"gi250a~1",
            b".git\xe2\x80\x8cignore",
            b"a/b",
            b"a\\.git\\b",
            &[b'x'; 600],
        ];
        for name in names {
            for mode in ["100644", "100755", "120000", "40000", "160000", "100664", "100600", "040000", "0", "140000"] {
                objects.push((ObjectKind::Tree, tree(&[(mode, name)])));
            }
        }
        objects.push((ObjectKind::Tree, tree(&[("100644", b"b"), ("100644", b"a")])));
        objects.push((ObjectKind::Tree, tree(&[("100644", b"a"), ("100644", b"a-b"), ("40000", b"a")])));
        objects.push((ObjectKind::Tree, b"100644 a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
        objects.push((ObjectKind::Tree, b"100644 a\0short".to_vec()));
        let mut n_plain = 0;
        for (kind, content) in &objects {
            let is_plain = links(*kind, content).is_some();
            n_plain += usize::from(is_plain);
            assert!(!is_plain || !git_complains(&git, *kind, content), "{kind} {:?}", String::from_utf8_lossy(content));
        }
        assert!(n_plain > 20, "{n_plain} are taken");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            for kind in [ObjectKind::Tree, ObjectKind::Commit, ObjectKind::Tag] {
                let _ = links(kind, &bytes);
            }
            let _ = is_person(&bytes);
        }
    }
}
