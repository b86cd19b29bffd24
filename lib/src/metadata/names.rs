//! User and group names of one root: from its own `passwd` and `group`, never from the machine we run on.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use super::{Metadata, shown};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::safepath::Dir;

/// Longest `passwd` or `group` that is read, in bytes: room for a million users.
const MAX_FILE: u64 = 128 << 20;

/// Which name belongs to which user and group number.
#[derive(Clone, Debug, Default)]
pub struct Names {
    users: Table,
    groups: Table,
}

#[derive(Clone, Debug, Default)]
struct Table {
    names: HashMap<u32, Vec<u8>>,
    numbers: HashMap<Vec<u8>, u32>,
    is_numeric: bool,
}

impl Names {
    /// Reads `etc/passwd` and `etc/group` below `root`; a file that is missing has no names.
    ///
    /// No symlink below `root` is followed, so that the files of an image are the image's own. A line that is
    /// not valid is passed over, as the C library does. Of two lines for one name or number the first counts.
    pub fn read(root: &Path) -> Result<Self> {
        let dir = Dir::open(root).context(|| format!("cannot open '{}'", root.display()))?;
        Self::of_dir(&dir).context(|| format!("cannot read the users and groups of '{}'", root.display()))
    }

    /// Does the same below an open directory.
    pub fn of_dir(root: &Dir) -> Result<Self> {
        let what = |file: &str| format!("cannot read 'etc/{file}'");
        let etc = match root.open_path(b"etc") {
            Err(error) if error.kind() == Kind::NotFound => return Ok(Self::default()),
            other => other.context(|| what(""))?,
        };
        let text = |file: &str| read_bounded(&etc, file.as_bytes()).context(|| what(file));
        Ok(Self::parse(&text("passwd")?, &text("group")?))
    }

    /// Returns no names at all: numbers are recorded, and taken as they are (`--numeric-ids`).
    pub fn numeric() -> Self {
        let table = Table { is_numeric: true, ..Table::default() };
        Self { users: table.clone(), groups: table }
    }

    /// Takes the names from the text of a `passwd` and a `group` file.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        Self { users: Table::parse(passwd), groups: Table::parse(group) }
    }

    /// Returns the name of user `uid`; number 0 is root also where no file says so.
    pub fn user_name(&self, uid: u32) -> Option<&[u8]> {
        self.users.name(uid)
    }

    /// Returns the name of group `gid`; number 0 is root also where no file says so.
    pub fn group_name(&self, gid: u32) -> Option<&[u8]> {
        self.groups.name(gid)
    }

    /// Returns the number of the user called `name`.
    pub fn uid_of(&self, name: &[u8]) -> Option<u32> {
        self.users.number(name)
    }

    /// Returns the number of the group called `name`.
    pub fn gid_of(&self, name: &[u8]) -> Option<u32> {
        self.groups.number(name)
    }
}

/// A user of a root, as its `passwd` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub uid: u32,
    /// The number of its first group.
    pub gid: u32,
    /// Its home, from the top of the root.
    pub home: Vec<u8>,
}

impl Account {
    /// Looks for `user`, by name or by number, in `etc/passwd` below `root`, through no symlink; `None` if it is not there.
    pub fn find(root: &Path, user: &str) -> Result<Option<Self>> {
        let what = || format!("cannot look for user '{user}' in '{}'", root.display());
        let Some(etc) = Dir::open(root).context(what)?.open_path_if_there(b"etc").context(what)? else { return Ok(None) };
        Ok(Self::parse(&read_bounded(&etc, b"passwd").context(what)?, user))
    }

    fn parse(passwd: &[u8], user: &str) -> Option<Self> {
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok().filter(|&n| n != u32::MAX);
        let all = passwd.split(|&b| b == b'\n').filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|&b| b == b':').collect();
            let (uid, gid, home) = (number(fields.get(2)?)?, number(fields.get(3)?)?, *fields.get(5)?);
            let home = if home.starts_with(b"/") { home } else { b"/" };
            Some((fields[0], Self { uid, gid, home: home.to_vec() }))
        });
        let mut all: Vec<(&[u8], Self)> = all.collect();
        let wanted = user.parse().ok();
        let by_name = all.iter().position(|(name, _)| *name == user.as_bytes());
        let at = by_name.or_else(|| all.iter().position(|(_, account)| Some(account.uid) == wanted))?;
        Some(all.swap_remove(at).1)
    }
}

/// Returns user and group number that `metadata` stands for on the machine of `names`.
///
/// The name decides where the target knows it, else the number. What was not root's never becomes root's:
/// an unknown name with number 0, or a name that is 0 on the target only, is refused.
pub fn owner(metadata: &Metadata, names: &Names) -> Result<(u32, u32)> {
    let uid = names.users.resolve(metadata.user.as_deref(), metadata.uid).map_err(|problem| refused("user", problem))?;
    let gid = names.groups.resolve(metadata.group.as_deref(), metadata.gid).map_err(|problem| refused("group", problem))?;
    Ok((uid, gid))
}

fn refused(what: &str, problem: String) -> Error {
    let hint = "add it to the target, or restore with numeric ids";
    Error::refused(Reason::Meta, format!("{what} {problem}; {hint}"))
}

impl Table {
    fn parse(text: &[u8]) -> Self {
        let mut table = Self::default();
        for line in text.split(|&b| b == b'\n') {
            let mut fields = line.split(|&b| b == b':');
            let (name, number) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
            let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).filter(|&n| n != u32::MAX);
            if let Some(number) = number.filter(|_| is_name(name)) {
                table.names.entry(number).or_insert_with(|| name.to_vec());
                table.numbers.entry(name.to_vec()).or_insert(number);
            }
        }
        table
    }

    fn name(&self, number: u32) -> Option<&[u8]> {
        let root = (number == 0).then_some(&b"root"[..]);
        self.names.get(&number).map(Vec::as_slice).or(root)
    }

    fn number(&self, name: &[u8]) -> Option<u32> {
        let root = (name == b"root" && !self.is_numeric).then_some(0);
        self.numbers.get(name).copied().or(root)
    }

    fn resolve(&self, name: Option<&[u8]>, number: u32) -> std::result::Result<u32, String> {
        let Some(name) = name.filter(|_| !self.is_numeric) else { return Ok(number) };
        match self.number(name) {
            None if number == 0 => Err(format!("'{}' was number 0 and is not known here", shown(name))),
            Some(0) if number != 0 => Err(format!("'{}' was number {number} and is 0 here", shown(name))),
            found => Ok(found.unwrap_or(number)),
        }
    }
}

/// Says whether a line begins with a name that can be recorded; `+` and `-` are what NIS used to add.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(&0) && !matches!(name[0], b'+' | b'-' | b'#')
}

fn read_bounded(dir: &Dir, name: &[u8]) -> Result<Vec<u8>> {
    let file = match dir.open_file(name) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    match text.len() as u64 <= MAX_FILE {
        true => Ok(text),
        false => Err(Error::new(Kind::Refused, format!("longer than {MAX_FILE} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safepath::FileKind;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        bad line\n\
        noid:x:x:5::/:\n\
        minus:x:4294967295:5::/:\n\
        big:x:4294967296:5::/:\n\
        +nis:x:7:7::/:\n\
        :x:8:8::/:\n\
        alice:x:1005:1005::/home/alice:/bin/sh\n\
        alias:x:1005:1005::/home/alice:/bin/sh\n\
        alice:x:1006:1006::/home/alice:/bin/sh\n\
        toor:x:0:0::/root:/bin/sh\n\
        short:x:9";

    fn file(user: Option<&str>, uid: u32) -> Metadata {
        Metadata { user: user.map(Into::into), uid, ..Metadata::new(FileKind::File) }
    }

    #[test]
    fn bad_lines_are_passed_over_and_the_first_of_two_counts() {
        let names = Names::parse(PASSWD, b"staff:x:50:alice\n");
        let known = [0, 5, 7, 8, 9, 1005, 1006].map(|uid| names.user_name(uid).map(|name| name.escape_ascii().to_string()));
        assert_eq!(known.map(|name| name.unwrap_or_default()), ["root", "", "", "", "short", "alice", "alice"]);
        assert_eq!(names.uid_of(b"alice"), Some(1005));
        assert_eq!(names.uid_of(b"minus"), None);
        assert_eq!(names.group_name(50), Some(&b"staff"[..]));
        assert_eq!(names.gid_of(b"alice"), None);
    }

    #[test]
    fn the_name_decides_then_the_number_and_never_root_by_accident() {
        let target = Names::parse(PASSWD, b"");
        let cases = [
            (file(Some("root"), 0), Some(0)),
            (file(Some("alice"), 1000), Some(1005)),
            (file(Some("bob"), 1000), Some(1000)),
            (file(None, 1000), Some(1000)),
            (file(None, 0), Some(0)),
            (file(Some("toor"), 0), Some(0)),
            (file(Some("bob"), 0), None),
            (file(Some("toor"), 1000), None),
        ];
        for (metadata, expected) in cases {
            let found = owner(&metadata, &target);
            assert_eq!(found.as_ref().ok().map(|ids| ids.0), expected, "{metadata}: {found:?}");
            if let Err(error) = found {
                assert_eq!(error.kind(), Kind::Refused);
            }
        }
        let mut group = file(None, 5);
        (group.group, group.gid) = (Some(b"bob".to_vec()), 0);
        let error = owner(&group, &target).unwrap_err().to_string();
        assert_eq!(error, "group 'bob' was number 0 and is not known here; add it to the target, or restore with numeric ids");
    }

    #[test]
    fn numeric_names_take_the_number_whatever_the_name_says() {
        let names = Names::numeric();
        assert_eq!(owner(&file(Some("bob"), 1000), &names).unwrap(), (1000, 0));
        assert_eq!(names.user_name(1000), None);
        assert_eq!(names.user_name(0), Some(&b"root"[..])); // so that root's files need no line
    }

    #[test]
    fn an_account_is_found_by_name_and_then_by_number() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:web:/var/www:/bin/false\n7:x:8:9::relative:\nbad:x:y:1::/:\nshort:x:5:5\n";
        let find = |user: &str| Account::parse(passwd, user).map(|found| (found.uid, found.gid, found.home));
        for who in ["www", "33"] {
            assert_eq!(find(who), Some((33, 34, b"/var/www".to_vec())), "{who}");
        }
        assert_eq!(find("7"), Some((8, 9, b"/".to_vec())));
        for who in ["bad", "short", "none", "99", ""] {
            assert_eq!(find(who), None, "{who}");
        }
    }

    #[test]
    fn the_files_of_an_image_are_its_own() {
        let image = tempfile::tempdir().unwrap();
        assert_eq!(Names::read(image.path()).unwrap().user_name(1), None);
        std::fs::create_dir(image.path().join("etc")).unwrap();
        assert_eq!(Names::read(image.path()).unwrap().user_name(1), None);
        std::fs::write(image.path().join("etc/passwd"), "daemon:x:1:1::/:\n").unwrap();
        assert_eq!(Names::read(image.path()).unwrap().user_name(1), Some(&b"daemon"[..]));
        std::os::unix::fs::symlink("/etc/group", image.path().join("etc/group")).unwrap();
        assert!(Names::read(image.path()).is_err());
    }
}
