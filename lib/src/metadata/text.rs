//! The text of one directory's metadata: `docs/formats/metadata.md`.
//!
//! The reader is strict by construction: it writes every line again and refuses one that comes out differently.

use std::collections::BTreeMap;
use std::io::Write as _;

use super::{DirMetadata, Flags, MAX_MAJOR, MAX_MINOR, MAX_XATTR_VALUE, Metadata, base64, default_mode, shown};
use crate::error::{Error, Kind, Result};
use crate::safepath::{FileKind, Time, check_name, check_path};

const MAGIC: &[u8] = b"git-devops metadata ";
const VERSION: &[u8] = b"1";
const MAX_NAME: usize = 255;

impl DirMetadata {
    /// Returns the text of this directory; entries that say nothing are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 * (self.entries.len() + 2));
        encode_header(&self.dir, &mut out);
        for (name, metadata) in &self.entries {
            encode_entry(name, metadata, &mut out);
        }
        out
    }

    /// Reads the text of a directory, and refuses whatever [`DirMetadata::encode`] would not have written.
    ///
    /// [`Entries`] reads the same without holding all of a large directory in memory.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let entries = Entries::new(bytes)?;
        let dir = entries.dir().clone();
        // From a sorted list the map is built in one go.
        let entries = entries.collect::<Result<Vec<_>>>()?;
        Ok(Self { dir, entries: BTreeMap::from_iter(entries) })
    }
}

/// One line: its text, the name and what it says.
pub(super) type Line<'a> = (&'a [u8], Vec<u8>, Metadata);

/// Reads the entries of a directory's text one by one, in order.
///
/// An entry that git holds comes as a file, whatever git knows about it: see [`Metadata::held_by_git`].
#[derive(Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    line_number: usize,
    dir: Metadata,
    last_name: Vec<u8>,
    canonical: Vec<u8>,
}

impl<'a> Entries<'a> {
    /// Reads the first two lines: the version and the directory itself.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let rest = check_version(bytes)?;
        let mut entries =
            Self { rest, line_number: 1, dir: Metadata::new(FileKind::Dir), last_name: Vec::new(), canonical: Vec::new() };
        let (_, name, metadata) = entries.next_line()?.ok_or_else(|| corrupt(2, "cut short, the entry '.' is missing"))?;
        if name != b"." {
            return Err(corrupt(2, "the entry '.' must come first"));
        }
        entries.dir = metadata;
        Ok(entries)
    }

    /// Returns the metadata of the directory itself.
    pub fn dir(&self) -> &Metadata {
        &self.dir
    }

    /// Returns the next line with its name and metadata, or `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<Line<'a>>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.line_number += 1;
        let end = self.rest.iter().position(|&b| b == b'\n').ok_or_else(|| corrupt(self.line_number, "cut short"))?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        let (name, metadata) = self.decode_line(line).map_err(|problem| corrupt(self.line_number, &problem))?;
        Ok(Some((line, name, metadata)))
    }

    fn decode_line(&mut self, line: &[u8]) -> Parsed<(Vec<u8>, Metadata)> {
        if line.starts_with(b"<<<<<<< ") {
            return Err("the conflict of a merge is not resolved yet".into());
        }
        let (name, metadata) = decode_line(line)?;
        let is_dir = metadata.kind == FileKind::Dir;
        if is_dir != (self.line_number == 2) {
            return Err("the entry '.' must come first, and once".into());
        }
        if !is_dir && name <= self.last_name {
            return Err(format!("'{}' is a duplicate or out of order", shown(&name)));
        }
        self.canonical.clear();
        encode_line(&name, &metadata, &mut self.canonical);
        if self.canonical != line {
            let expected = String::from_utf8_lossy(&self.canonical);
            let expected: String = expected.chars().take(200).collect();
            return Err(format!("not in the one valid form, which begins '{expected}'"));
        }
        if !is_dir {
            if line_says_nothing(line) {
                return Err(format!("'{}' says nothing", shown(&name)));
            }
            self.last_name.clone_from(&name);
        }
        Ok((name, metadata))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(Vec<u8>, Metadata)>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.next_line().inspect_err(|_| self.rest = &[]);
        line.map(|found| found.map(|(_, name, metadata)| (name, metadata))).transpose()
    }
}

/// Appends the first two lines of a text: the version and the directory itself.
pub fn encode_header(dir: &Metadata, out: &mut Vec<u8>) {
    out.extend_from_slice(&first_line());
    encode_line(b".", dir, out);
    out.push(b'\n');
}

/// Appends the line of one entry, if there is anything to say; entries come sorted by name.
pub fn encode_entry(name: &[u8], metadata: &Metadata, out: &mut Vec<u8>) {
    let start = out.len();
    encode_line(name, metadata, out);
    if line_says_nothing(&out[start..]) {
        out.truncate(start);
    } else {
        out.push(b'\n');
    }
}

/// Returns the line that tells format and version.
pub(super) fn first_line() -> Vec<u8> {
    [MAGIC, VERSION, b"\n"].concat()
}

/// Returns the line that says what `fields` (`key=value`, in any order) say, or `None` if that is nothing.
pub(super) fn line_of_fields<'a>(name: &[u8], fields: impl Iterator<Item = &'a [u8]>) -> Parsed<Option<Vec<u8>>> {
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by_key(|field| !field.starts_with(b"type=")); // the type sets the defaults of the rest
    let mut metadata = Metadata::new(if name == b"." { FileKind::Dir } else { FileKind::File });
    fields.into_iter().try_for_each(|field| decode_field(&mut metadata, field))?;
    metadata.xattrs.sort_unstable();
    check_fits_kind(&metadata)?;
    let mut line = Vec::new();
    encode_line(name, &metadata, &mut line);
    Ok((name == b"." || !line_says_nothing(&line)).then_some(line))
}

/// Returns the escaped name, or the number of an owner without one, for people to read.
pub(super) fn escaped_id(name: Option<&[u8]>, number: u32) -> String {
    let Some(name) = name else { return number.to_string() };
    let mut out = Vec::new();
    escape(name, b"", &mut out);
    String::from_utf8(out).expect("BUG: escaping left bytes that are not UTF-8")
}

/// Returns a name or a path as it stands in a line of text.
pub fn escaped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    escape(bytes, b"", &mut out);
    out
}

/// Returns what [`escaped`] made of it; other ways to write the same are understood too, so the caller compares.
pub fn unescaped(text: &[u8]) -> Result<Vec<u8>> {
    unescape(text).map_err(|problem| Error::new(Kind::Corrupt, problem))
}

fn line_says_nothing(line: &[u8]) -> bool {
    !line.contains(&b' ')
}

fn check_version(bytes: &[u8]) -> Result<&[u8]> {
    let not_ours = || corrupt(1, "not a metadata file");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(not_ours)?;
    let end = rest.iter().take(20).position(|&b| b == b'\n').ok_or_else(not_ours)?;
    match &rest[..end] {
        VERSION => Ok(&rest[end + 1..]),
        version if !version.is_empty() && version.iter().all(u8::is_ascii_digit) => {
            let version = version.escape_ascii();
            Err(Error::new(
                Kind::Unsupported,
                format!("metadata has format {version}, this program knows only 1; use a newer one"),
            ))
        }
        _ => Err(not_ours()),
    }
}

fn corrupt(line_number: usize, problem: &str) -> Error {
    Error::new(Kind::Corrupt, format!("metadata line {line_number}: {problem}"))
}

// ---- writing ----

fn encode_line(name: &[u8], metadata: &Metadata, out: &mut Vec<u8>) {
    escape(name, b"", out);
    if let Some(kind) = node_name(metadata.kind) {
        put(out, format_args!(" type={kind}"));
    }
    if let Some(path) = &metadata.hardlink {
        out.extend_from_slice(b" link=");
        escape(path, b"", out);
    }
    let is_default_mode = metadata.mode == default_mode(metadata.kind);
    if metadata.kind != FileKind::Symlink && (metadata.is_node() || !is_default_mode) {
        put(out, format_args!(" mode={:04o}", metadata.mode));
    }
    encode_id(["user", "uid"], metadata.user.as_deref(), metadata.uid, out);
    encode_id(["group", "gid"], metadata.group.as_deref(), metadata.gid, out);
    if let Some(time) = metadata.mtime {
        encode_time(time, out);
    }
    if let Some((major, minor)) = metadata.rdev {
        put(out, format_args!(" rdev={major}:{minor}"));
    }
    for (i, (name, _)) in metadata.flags.iter().enumerate() {
        put(out, format_args!("{}{name}", if i == 0 { " flags=" } else { "," }));
    }
    for (i, (offset, len)) in metadata.holes.iter().enumerate() {
        put(out, format_args!("{}{offset}+{len}", if i == 0 { " holes=" } else { "," }));
    }
    if metadata.partial {
        out.extend_from_slice(b" partial=yes");
    }
    for (name, value) in &metadata.xattrs {
        encode_xattr(name, value, out);
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("BUG: writing to memory failed");
}

fn encode_id([with_name, without]: [&str; 2], name: Option<&[u8]>, number: u32, out: &mut Vec<u8>) {
    match name {
        Some(b"root") if number == 0 => (),
        Some(name) => {
            put(out, format_args!(" {with_name}="));
            escape(name, b"/", out);
            put(out, format_args!("/{number}"));
        }
        None => put(out, format_args!(" {without}={number}")),
    }
}

fn encode_time(time: Time, out: &mut Vec<u8>) {
    // Before 1970 the nanoseconds count towards zero in the text, but forward in `Time`.
    let is_negative_fraction = time.secs < 0 && time.nanos > 0;
    let whole = if is_negative_fraction { time.secs + 1 } else { time.secs };
    let nanos = if is_negative_fraction { 1_000_000_000 - time.nanos } else { time.nanos };
    let sign = if is_negative_fraction && whole == 0 { "-" } else { "" };
    put(out, format_args!(" mtime={sign}{whole}"));
    if nanos != 0 {
        put(out, format_args!(".{nanos:09}"));
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

fn encode_xattr(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b" xattr.");
    escape(name, b"=:", out);
    if is_text(value) {
        out.push(b'=');
        escape(value, b"", out);
    } else {
        out.extend_from_slice(b":=");
        base64::encode(value, out);
    }
}

/// Says whether people can read `value`: UTF-8 without control characters, but for one NUL byte at its end.
fn is_text(value: &[u8]) -> bool {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    std::str::from_utf8(value).is_ok_and(|text| !text.contains(|c| matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}')))
}

/// Appends `bytes` with `%XX` for whatever would split a line, deceive the eye, or is not UTF-8.
fn escape(bytes: &[u8], separators: &[u8], out: &mut Vec<u8>) {
    let is_plain = |b: &u8| b.is_ascii_graphic() && *b != b'%' && !separators.contains(b);
    if bytes.iter().all(is_plain) {
        return out.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let mut buffer = [0; 4];
            let encoded = c.encode_utf8(&mut buffer).as_bytes();
            if is_escaped(c) || (c.is_ascii() && separators.contains(&encoded[0])) {
                escape_bytes(encoded, out);
            } else {
                out.extend_from_slice(encoded);
            }
        }
        escape_bytes(chunk.invalid(), out);
    }
}

fn escape_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        put(out, format_args!("%{byte:02X}"));
    }
}

fn is_escaped(c: char) -> bool {
    // A list of our own: what the format escapes must not change with the tables of a newer compiler.
    matches!(c, '\0'..=' ' | '%' | '\u{7f}'..='\u{a0}' | '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

// ---- reading ----

pub(super) type Parsed<T> = std::result::Result<T, String>;

fn decode_line(line: &[u8]) -> Parsed<(Vec<u8>, Metadata)> {
    let mut fields = line.split(|&b| b == b' ');
    let name = unescape(fields.next().unwrap_or_default())?;
    let is_dir = name == b".";
    if !is_dir {
        check_name(&name).map_err(|error| error.to_string())?;
    }
    let mut metadata = Metadata::new(if is_dir { FileKind::Dir } else { FileKind::File });
    for field in fields {
        decode_field(&mut metadata, field)?;
    }
    check_fits_kind(&metadata)?;
    Ok((name, metadata))
}

/// Reads one key; that none comes twice or out of order shows when the line is written again.
fn decode_field(metadata: &mut Metadata, field: &[u8]) -> Parsed<()> {
    let at = field.iter().position(|&b| b == b'=').ok_or_else(|| format!("'{}' is not of the form key=value", shown(field)))?;
    let (key, value) = (&field[..at], &field[at + 1..]);
    let invalid = || format!("invalid {} '{}'", shown(key), shown(value));
    match key {
        b"type" => *metadata = Metadata::new(node_kind(value).ok_or_else(invalid)?),
        b"link" => {
            let path = unescape(value)?;
            check_path(&path).map_err(|error| error.to_string())?;
            metadata.hardlink = Some(path);
        }
        b"mode" => metadata.mode = decode_mode(value).ok_or_else(invalid)?,
        b"user" => (metadata.user, metadata.uid) = decode_named_id(value)?.ok_or_else(invalid)?,
        b"uid" => (metadata.user, metadata.uid) = (None, decode_id(value).ok_or_else(invalid)?),
        b"group" => (metadata.group, metadata.gid) = decode_named_id(value)?.ok_or_else(invalid)?,
        b"gid" => (metadata.group, metadata.gid) = (None, decode_id(value).ok_or_else(invalid)?),
        b"mtime" => metadata.mtime = Some(decode_time(value).ok_or_else(invalid)?),
        b"rdev" => metadata.rdev = Some(decode_rdev(value).ok_or_else(invalid)?),
        b"flags" => metadata.flags = decode_flags(value).ok_or_else(invalid)?,
        b"holes" => metadata.holes = decode_holes(value).ok_or_else(invalid)?,
        b"partial" if value == b"yes" => metadata.partial = true,
        _ => match key.strip_prefix(b"xattr.") {
            Some(name) => metadata.xattrs.push(decode_xattr(name, value)?),
            None => return Err(format!("unknown key '{}'", shown(key))),
        },
    }
    Ok(())
}

fn check_fits_kind(metadata: &Metadata) -> Parsed<()> {
    let is_device = matches!(metadata.kind, FileKind::Char | FileKind::Block);
    let is_dir = metadata.kind == FileKind::Dir;
    let problem = match metadata {
        m if m.rdev.is_some() != is_device => "a device, and nothing else, has 'rdev'",
        m if m.partial && !is_dir => "only the entry '.' has 'partial'",
        m if m.hardlink.is_some() && is_dir => "a directory has no 'link'",
        m if !m.holes.is_empty() && m.kind != FileKind::File => "only a file has 'holes'",
        m if !m.flags.is_empty() && m.is_node() => "a node has no 'flags'",
        m if !m.xattrs.is_sorted_by(|a, b| a.0 < b.0) => "an attribute is a duplicate or out of order",
        _ => return Ok(()),
    };
    Err(problem.into())
}

fn node_name(kind: FileKind) -> Option<&'static str> {
    Some(match kind {
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::Char => "char",
        FileKind::Block => "block",
        FileKind::File | FileKind::Dir | FileKind::Symlink => return None,
    })
}

fn node_kind(name: &[u8]) -> Option<FileKind> {
    let nodes = [FileKind::Fifo, FileKind::Socket, FileKind::Char, FileKind::Block];
    nodes.into_iter().find(|&kind| node_name(kind).is_some_and(|known| known.as_bytes() == name))
}

fn decode_mode(value: &[u8]) -> Option<u16> {
    let mode = u16::from_str_radix(std::str::from_utf8(value).ok()?, 8).ok()?;
    (mode <= 0o7777).then_some(mode)
}

fn decode_number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Reads a user or group number; -1 under any spelling means "do not change" to the kernel, so it is none.
fn decode_id(value: &[u8]) -> Option<u32> {
    decode_number(value).filter(|&id| id != u32::MAX)
}

fn decode_named_id(value: &[u8]) -> Parsed<Option<(Option<Vec<u8>>, u32)>> {
    let Some(at) = value.iter().position(|&b| b == b'/') else { return Ok(None) };
    let name = unescape(&value[..at])?;
    let is_valid = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&0);
    Ok(decode_id(&value[at + 1..]).filter(|_| is_valid).map(|id| (Some(name), id)))
}

pub(super) fn decode_time(value: &[u8]) -> Option<Time> {
    let (whole, fraction) = match value.iter().position(|&b| b == b'.') {
        Some(at) => (&value[..at], &value[at + 1..]),
        None => (value, &b""[..]),
    };
    if fraction.len() > 9 || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = fraction.iter().chain(std::iter::repeat_n(&b'0', 9 - fraction.len()));
    let nanos = nanos.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    let secs: i64 = decode_number(whole)?;
    if whole.starts_with(b"-") && nanos > 0 {
        return Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}

fn decode_rdev(value: &[u8]) -> Option<(u32, u32)> {
    let at = value.iter().position(|&b| b == b':')?;
    let (major, minor) = (decode_number(&value[..at])?, decode_number(&value[at + 1..])?);
    (major <= MAX_MAJOR && minor <= MAX_MINOR).then_some((major, minor))
}

fn decode_flags(value: &[u8]) -> Option<Flags> {
    let names = std::str::from_utf8(value).ok()?.split(',');
    names.map(Flags::named).try_fold(Flags::default(), |all, flag| Some(all | flag?))
}

fn decode_holes(value: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut holes = Vec::new();
    let mut end = None;
    for hole in value.split(|&b| b == b',') {
        let at = hole.iter().position(|&b| b == b'+')?;
        let (offset, len): (u64, u64) = (decode_number(&hole[..at])?, decode_number(&hole[at + 1..])?);
        if len == 0 || end.is_some_and(|end| offset <= end) {
            return None;
        }
        end = Some(offset.checked_add(len).filter(|&end| end <= i64::MAX as u64)?);
        holes.push((offset, len));
    }
    Some(holes)
}

fn decode_xattr(name: &[u8], value: &[u8]) -> Parsed<(Vec<u8>, Vec<u8>)> {
    let (name, value) = match name.strip_suffix(b":") {
        Some(name) => (name, base64::decode(value).ok_or_else(|| format!("invalid base64 '{}'", shown(value)))?),
        None => (name, unescape(value)?),
    };
    let name = unescape(name)?;
    if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
        return Err(format!("invalid attribute name '{}'", shown(&name)));
    }
    if value.len() > MAX_XATTR_VALUE {
        return Err(format!("the value of attribute '{}' is longer than {MAX_XATTR_VALUE} bytes", shown(&name)));
    }
    Ok((name, value))
}

fn unescape(text: &[u8]) -> Parsed<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&b| b == b'%') {
        bytes.extend_from_slice(&rest[..at]);
        let digits = rest.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| format!("bad escape in '{}'", shown(text)))?);
        rest = &rest[at + 3..];
    }
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &[u8] = include_bytes!("../../../docs/formats/metadata.golden");
    const PAGE: &str = include_str!("../../../docs/formats/metadata.md");

    fn file() -> Metadata {
        Metadata::new(FileKind::File)
    }

    fn named(name: &str, id: u32) -> (Option<Vec<u8>>, u32) {
        (Some(name.into()), id)
    }

    /// Returns what the golden file says.
    fn example() -> DirMetadata {
        let mut example = DirMetadata::new();
        example.dir.mode = 0o1777;
        example.dir.mtime = Some(Time { secs: 1_700_000_000, nanos: 500_000_000 });
        let mut add = |name: &[u8], metadata: Metadata| assert!(example.entries.insert(name.to_vec(), metadata).is_none());

        let mut capability = vec![0; 20];
        (capability[0], capability[3], capability[5]) = (0, 2, 0x20);
        let mtime = Some(Time { secs: 1_700_000_000, nanos: 123_456_789 });
        let xattrs = vec![(b"security.capability".to_vec(), capability)];
        add(b"link-to-ping", Metadata { hardlink: Some(b"bin/ping".into()), mode: 0o4755, mtime, xattrs, ..file() });

        let ((user, uid), (group, gid)) = (named("ren é/", 1001), named("staff", 50));
        add(b"caf\xc3", Metadata { user, uid, group, gid, ..file() });
        let mtime = Some(Time { secs: -1, nanos: 999_999_999 });
        add(b"core.img", Metadata { mtime, holes: vec![(0, 4096), (8192, 1 << 20)], ..file() });
        let flags = Flags::APPEND | Flags::named("nodump").unwrap();
        add(b"log", Metadata { user: None, uid: u32::MAX - 1, group: None, gid: 7, flags, ..file() });
        add(b"null", Metadata { mode: 0o666, rdev: Some((1, 3)), ..Metadata::new(FileKind::Char) });
        add(b"queue", Metadata::new(FileKind::Fifo));
        let (group, gid) = named("shadow", 42);
        let xattrs = [("security.selinux", "system_u:object_r:shadow_t:s0\0"), ("user.empty", ""), ("user.k=v", "100% sure")];
        let xattrs = xattrs.map(|(name, value)| (name.into(), value.into())).to_vec();
        add(b"shadow", Metadata { mode: 0o640, group, gid, xattrs, ..file() });
        example
    }

    #[test]
    fn the_page_the_golden_file_and_the_program_agree() {
        let block = PAGE.split("```\n").nth(1).unwrap();
        assert_eq!(block.as_bytes(), GOLDEN);
        assert_eq!(String::from_utf8(example().encode()).unwrap(), block);
        assert_eq!(DirMetadata::decode(GOLDEN).unwrap(), example());
    }

    #[test]
    fn the_page_lists_the_flags() {
        let list = Flags::all().iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        assert!(PAGE.replace('\n', " ").contains(&format!("Flags: {list}.")), "{list}");
    }

    #[test]
    fn what_equals_the_default_is_not_written() {
        let mut dir = DirMetadata::new();
        dir.entries.insert(b"plain".into(), file());
        dir.entries.insert(b"link".into(), Metadata::new(FileKind::Symlink));
        assert_eq!(dir.encode(), b"git-devops metadata 1\n.\n");
        assert_eq!(DirMetadata::decode(b"git-devops metadata 1\n.\n").unwrap(), DirMetadata::new());
    }

    #[test]
    fn a_line_that_no_writer_writes_is_refused() {
        let cases: &[(&[u8], &str)] = &[
            (b"a mode=0644", "line 3: not in the one valid form, which begins 'a'"),
            (b"a", "line 3: 'a' says nothing"),
            (b"", "line 3: name '' is empty"),
            (b"a mode=755", "line 3: not in the one valid form, which begins 'a mode=0755'"),
            (b"a mode=10000", "line 3: invalid mode '10000'"),
            (b"a mode=0600 ", "line 3: '' is not of the form key=value"),
            (b"a  mode=0600", "line 3: '' is not of the form key=value"),
            (b"a mode=0600 mode=0600", "line 3: not in the one valid form, which begins 'a mode=0600'"),
            (b"a uid=5 mode=0600", "line 3: not in the one valid form, which begins 'a mode=0600 uid=5'"),
            (b"a uid=4294967295", "line 3: invalid uid '4294967295'"),
            (b"a uid=4294967296", "line 3: invalid uid '4294967296'"),
            (b"a uid=-1", "line 3: invalid uid '-1'"),
            (b"a gid=4294967295", "line 3: invalid gid '4294967295'"),
            (b"a user=alice/-1", "line 3: invalid user 'alice/-1'"),
            (b"a user=/5", "line 3: invalid user '/5'"),
            (b"a user=alice", "line 3: invalid user 'alice'"),
            (b"a user=x/y/5", "line 3: invalid user 'x/y/5'"),
            (b"a user=a%00/5", "line 3: invalid user 'a%00/5'"),
            (b"a user=root/0", "line 3: not in the one valid form, which begins 'a'"),
            (b"a uid=05", "line 3: not in the one valid form, which begins 'a uid=5'"),
            (b"a uid=+5", "line 3: not in the one valid form, which begins 'a uid=5'"),
            (b"a uid=5 user=x/5", "line 3: not in the one valid form, which begins 'a user=x/5'"),
            (b"a colour=red", "line 3: unknown key 'colour'"),
            (b"a mtime=1.50", "line 3: not in the one valid form, which begins 'a mtime=1.5'"),
            (b"a mtime=1.", "line 3: not in the one valid form, which begins 'a mtime=1'"),
            (b"a mtime=-0", "line 3: not in the one valid form, which begins 'a mtime=0'"),
            (b"a mtime=1.0000000001", "line 3: invalid mtime '1.0000000001'"),
            (b"a mtime=9223372036854775808", "line 3: invalid mtime '9223372036854775808'"),
            (b"a mtime=-9223372036854775808.5", "line 3: invalid mtime '-9223372036854775808.5'"),
            (b"a rdev=1:3", "line 3: a device, and nothing else, has 'rdev'"),
            (b"a type=char mode=0600", "line 3: a device, and nothing else, has 'rdev'"),
            (b"a type=char mode=0600 rdev=4096:0", "line 3: invalid rdev '4096:0'"),
            (b"a type=block mode=0600 rdev=8:1048576", "line 3: invalid rdev '8:1048576'"),
            (b"a type=file mode=0600", "line 3: invalid type 'file'"),
            (b"a type=fifo", "line 3: not in the one valid form, which begins 'a type=fifo mode=0000'"),
            (b"a mode=0600 type=fifo", "line 3: not in the one valid form, which begins 'a type=fifo mode=0000'"),
            (b"a flags=immutable,sync", "line 3: not in the one valid form, which begins 'a flags=sync,immutable'"),
            (b"a flags=", "line 3: invalid flags ''"),
            (b"a flags=extents", "line 3: invalid flags 'extents'"),
            (b"a type=fifo mode=0600 flags=sync", "line 3: a node has no 'flags'"),
            (b"a holes=", "line 3: invalid holes ''"),
            (b"a holes=0+0", "line 3: invalid holes '0+0'"),
            (b"a holes=0+5,5+5", "line 3: invalid holes '0+5,5+5'"),
            (b"a holes=9+5,0+5", "line 3: invalid holes '9+5,0+5'"),
            (b"a holes=1+9223372036854775807", "line 3: invalid holes '1+9223372036854775807'"),
            (b"a holes=1+18446744073709551615", "line 3: invalid holes '1+18446744073709551615'"),
            (b"a partial=yes", "line 3: only the entry '.' has 'partial'"),
            (b"a link=../x", "line 3: name '..' leads out of its directory"),
            (b"a link=/x", "line 3: name '' is empty"),
            (b"a link=x%00", "line 3: name 'x\\x00' contains a NUL byte"),
            (b"a xattr.=x", "line 3: invalid attribute name ''"),
            (b"a xattr.user.a:=!", "line 3: invalid base64 '!'"),
            (b"a xattr.user.a:=YQ==", "line 3: not in the one valid form, which begins 'a xattr.user.a=a'"),
            (b"a xattr.user.a=%01", "line 3: not in the one valid form, which begins 'a xattr.user.a:=AQ=='"),
            (b"a xattr.user.b= xattr.user.a=", "line 3: an attribute is a duplicate or out of order"),
            (b"a xattr.user.a= xattr.user.a=", "line 3: an attribute is a duplicate or out of order"),
            (b"a%2Fb mode=0600", "line 3: name 'a/b' contains a slash"),
            (b"a%00 mode=0600", "line 3: name 'a\\x00' contains a NUL byte"),
            (b".. mode=0600", "line 3: name '..' leads out of its directory"),
            (b". mode=0700", "line 3: the entry '.' must come first, and once"),
            (b"%41 mode=0600", "line 3: not in the one valid form, which begins 'A mode=0600'"),
            (b"%c3 mode=0600", "line 3: not in the one valid form, which begins '%C3 mode=0600'"),
            (b"a% mode=0600", "line 3: bad escape in 'a%'"),
            (b"a%4 mode=0600", "line 3: bad escape in 'a%4'"),
            (b"a%+4 mode=0600", "line 3: not in the one valid form, which begins 'a%04 mode=0600'"),
            (b"a\xff mode=0600", "line 3: not in the one valid form, which begins 'a%FF mode=0600'"),
            (b"a\t mode=0600", "line 3: not in the one valid form, which begins 'a%09 mode=0600'"),
            (b"a mode=0600\r", "line 3: invalid mode '0600\\r'"),
            ("a\u{202e} mode=0600".as_bytes(), "line 3: not in the one valid form, which begins 'a%E2%80%AE mode=0600'"),
            (b"b mode=0600\na mode=0600", "line 4: 'a' is a duplicate or out of order"),
            (b"a mode=0600\na mode=0600", "line 4: 'a' is a duplicate or out of order"),
            (b"<<<<<<< ours", "line 3: the conflict of a merge is not resolved yet"),
            (b"=======", "line 3: '=======' says nothing"),
            (b">>>>>>> theirs", "line 3: 'theirs' is not of the form key=value"),
        ];
        for (line, expected) in cases {
            let text = [b"git-devops metadata 1\n.\n", *line, b"\n"].concat();
            let error = DirMetadata::decode(&text).expect_err(&line.escape_ascii().to_string());
            assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Corrupt, &*format!("metadata {expected}")));
        }
    }

    #[test]
    fn a_file_that_is_not_ours_or_newer_is_told_apart() {
        let cases: &[(&[u8], Kind)] = &[
            (b"", Kind::Corrupt),
            (b"git-devops metadata 1", Kind::Corrupt),
            (b"git-devops metadata 1\n", Kind::Corrupt),
            (b"git-devops metadata 1\n. mode=0700", Kind::Corrupt),
            (b"git-devops metadata 1\na mode=0700\n", Kind::Corrupt),
            (b"git-devops metadata \n.\n", Kind::Corrupt),
            (b"git-devops metadata 1x\n.\n", Kind::Corrupt),
            (b"git-devops metadata 01\n.\n", Kind::Unsupported),
            (b"git-devops metadata 2\nwhatever", Kind::Unsupported),
        ];
        for (text, kind) in cases {
            assert_eq!(DirMetadata::decode(text).expect_err(&text.escape_ascii().to_string()).kind(), *kind);
        }
    }

    #[test]
    fn a_value_is_not_longer_than_the_kernel_takes() {
        let text = |len| format!("git-devops metadata 1\n.\na xattr.user.a={}\n", "x".repeat(len));
        assert!(DirMetadata::decode(text(MAX_XATTR_VALUE).as_bytes()).is_ok());
        assert!(DirMetadata::decode(text(MAX_XATTR_VALUE + 1).as_bytes()).is_err());
    }

    fn any_id() -> impl Strategy<Value = (Option<Vec<u8>>, u32)> {
        let name = proptest::option::of(proptest::collection::vec(1..=255_u8, 1..6));
        prop_oneof![Just((Some(b"root".to_vec()), 0)), (name, 0..u32::MAX)]
    }

    fn any_xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let name = proptest::collection::vec(1..=255_u8, 1..5);
        let value = prop_oneof![proptest::collection::vec(any::<u8>(), 0..9), "[a-z é\n\0%=:]{0,6}".prop_map(String::into_bytes)];
        proptest::collection::btree_map(name, value, 0..3).prop_map(|map| map.into_iter().collect())
    }

    fn any_kind() -> impl Strategy<Value = (FileKind, Option<(u32, u32)>)> {
        let rdev = (0..=MAX_MAJOR, 0..=MAX_MINOR);
        prop_oneof![
            4 => Just((FileKind::File, None)),
            1 => Just((FileKind::Fifo, None)),
            1 => Just((FileKind::Socket, None)),
            1 => rdev.clone().prop_map(|rdev| (FileKind::Char, Some(rdev))),
            1 => rdev.prop_map(|rdev| (FileKind::Block, Some(rdev))),
        ]
    }

    prop_compose! {
        /// Any metadata that a file or a node can have.
        fn any_metadata()(
            (kind, rdev) in any_kind(),
            mode in 0..=0o7777_u16,
            (user, uid) in any_id(),
            (group, gid) in any_id(),
            mtime in proptest::option::of((any::<i64>(), 0..1_000_000_000_u32)),
            bits in any::<u32>(),
            xattrs in any_xattrs(),
            hardlink in proptest::option::of("[a-c %]{1,3}/[é]{1,3}"),
            holes in proptest::collection::vec((1..9_u64, 1..9_u64), 0..3),
        ) -> Metadata {
            let mut end = 0;
            let holes = holes.into_iter().map(|(gap, len)| { end += gap + len; (end - len, len) });
            let is_file = kind == FileKind::File;
            Metadata {
                kind, mode, uid, user, gid, group, rdev, xattrs,
                mtime: mtime.map(|(secs, nanos)| Time { secs, nanos }),
                flags: if is_file { Flags::from_bits(bits) } else { Flags::default() },
                hardlink: hardlink.map(String::into_bytes),
                holes: if is_file { holes.collect() } else { Vec::new() },
                partial: false,
            }
        }
    }

    pub fn any_dir() -> impl Strategy<Value = DirMetadata> {
        let name = proptest::collection::vec(1..=255_u8, 1..5).prop_filter("a valid name", |name| check_name(name).is_ok());
        (any_metadata(), any::<bool>(), proptest::collection::btree_map(name, any_metadata(), 0..5)).prop_map(
            |(dir, partial, mut entries)| {
                entries.retain(|_, metadata| *metadata != file());
                let dir = Metadata { kind: FileKind::Dir, rdev: None, hardlink: None, holes: Vec::new(), partial, ..dir };
                DirMetadata { dir, entries }
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(dir in any_dir()) {
            let text = dir.encode();
            prop_assert_eq!(DirMetadata::decode(&text).map_err(|error| TestCaseError::fail(format!("{error:?}")))?, dir);
        }

        #[test]
        fn whatever_is_read_is_written_the_same(dir in any_dir(), at in any::<prop::sample::Index>(), byte in prop_oneof![any::<u8>(), Just(b' '), Just(b'\n'), Just(b'%'), Just(b'=')]) {
            let mut text = dir.encode();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(read) = DirMetadata::decode(&text) {
                prop_assert_eq!(read.encode(), text);
            }
        }

        #[test]
        fn noise_is_refused_without_a_panic(noise in "[a-z=/.%: 0-9\n-]{0,80}") {
            let text = format!("git-devops metadata 1\n.{noise}");
            if let Ok(read) = DirMetadata::decode(text.as_bytes()) {
                prop_assert_eq!(read.encode(), text.as_bytes());
            }
        }
    }
}
