//! The trees that the program is tried on: a whole Debian, every oddity that Linux allows, and much of the same.
//!
//! All of it is made the same way each time: what looks random comes from a seeded generator.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{self as sys, AtFlags, CWD, FileType, Gid, IFlags, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use crate::command::{Context, Result, run, succeed, target_dir};
use crate::{ensure, packages};

/// The size from which a file is stored as chunks.
pub const LARGE: u64 = 131_072;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

type Builder = fn(&Path) -> Result;

/// The trees by name, in the sizes that are handy to try something on.
const NAMED: &[(&str, Builder)] = &[
    ("debian-root", debian_root),
    ("debian-machine", debian_machine),
    ("oddities", oddities),
    ("many-files", |dir| many_files(dir, 200_000)),
    ("big-dir", |dir| big_dir(dir, 100_000)),
    ("media", |dir| media(dir, 2 * GIB)),
    ("disk-image", |dir| disk_image(&dir.join("disk.img"), 64 * GIB, 3 * GIB)),
];

/// Runs `cargo xtask fixture`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let [name, dir] = args.as_slice() else {
        NAMED.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    };
    let (_, build) = NAMED.iter().find(|(known, _)| name == *known).ok_or("no such fixture")?;
    let dir = Path::new(dir);
    std::fs::create_dir_all(dir).context(|| format!("cannot create '{}'", dir.display()))?;
    build(dir)?;
    Ok(ExitCode::SUCCESS)
}

/// Numbers that look random and are the same each time (splitmix64).
pub struct Seeded(u64);

impl Seeded {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// Returns the next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills a buffer with bytes that nothing can compress.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
    }

    /// Returns `len` bytes that nothing can compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        self.fill(&mut buffer);
        buffer
    }

    /// Returns `len` bytes of lines of words.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "host",
            "listen",
            "enabled",
            "=",
            "true",
            "# see",
            "the",
            "manual",
            "/etc/default",
            "0644",
            "root",
            "include",
            "path",
            "user",
            "timeout 30",
            "\n",
        ];
        let mut text = Vec::with_capacity(len + 16);
        while text.len() < len {
            text.extend_from_slice(WORDS[(self.next() % 16) as usize].as_bytes());
            text.push(b' ');
        }
        text.truncate(len);
        text
    }
}

/// Writes `n` small files, text and binary, of up to 8 KiB, into a thousand directories.
pub fn many_files(dir: &Path, n: usize) -> Result {
    let mut seeded = Seeded::new(1);
    let n_dirs = n.clamp(1, 1000);
    for at in 0..n_dirs {
        std::fs::create_dir_all(dir.join(many_dir(at)))?;
    }
    for at in 0..n {
        let len = (seeded.next() % 8192) as usize;
        let is_text = !seeded.next().is_multiple_of(3);
        let content = if is_text { seeded.text(len) } else { seeded.bytes(len) };
        let name = format!("{}/file-{at:06}.{}", many_dir(at % n_dirs), if is_text { "conf" } else { "bin" });
        std::fs::write(dir.join(name), content)?;
    }
    Ok(())
}

fn many_dir(at: usize) -> String {
    format!("group-{:02}/dir-{at:03}", at / 50)
}

/// Writes one directory with `n` entries.
pub fn big_dir(dir: &Path, n: usize) -> Result {
    let big = dir.join("big-dir");
    std::fs::create_dir_all(&big)?;
    for at in 0..n {
        std::fs::write(big.join(format!("entry-{at:06}")), format!("{at}\n"))?;
    }
    Ok(())
}

/// Writes files of at most 256 MiB, together `bytes` long, that nothing can compress.
pub fn media(dir: &Path, bytes: u64) -> Result {
    let mut seeded = Seeded::new(2);
    let mut left = bytes;
    for at in 0.. {
        let len = left.min(256 * MIB);
        if len == 0 {
            break;
        }
        write_random(&dir.join(format!("clip-{at:03}.bin")), len, &mut seeded)?;
        left -= len;
    }
    Ok(())
}

fn write_random(path: &Path, len: u64, seeded: &mut Seeded) -> Result {
    let mut file = File::create(path).context(|| format!("cannot create '{}'", path.display()))?;
    let mut buffer = vec![0; MIB as usize];
    let mut left = len;
    while left > 0 {
        let part = left.min(MIB) as usize;
        seeded.fill(&mut buffer[..part]);
        file.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// Writes a sparse file of `size` bytes whose `data` bytes lie in runs of 1 MiB, evenly spread.
///
/// A third of the runs is text, and one in eight repeats the one before.
pub fn disk_image(path: &Path, size: u64, data: u64) -> Result {
    let file = File::create(path).context(|| format!("cannot create '{}'", path.display()))?;
    file.set_len(size)?;
    let mut seeded = Seeded::new(3);
    let n_runs = data / MIB;
    let step = (size / n_runs.max(1)) & !0xfff;
    let mut run = Vec::new();
    for at in 0..n_runs {
        if at % 8 != 7 {
            run = if at % 3 == 0 { seeded.text(MIB as usize) } else { seeded.bytes(MIB as usize) };
        }
        file.write_all_at(&run, at * step)?;
    }
    Ok(())
}

/// Overwrites 4 KiB of a file at `offset`.
pub fn edit_4k(path: &Path, offset: u64) -> Result {
    let file = File::options().write(true).open(path).context(|| format!("cannot open '{}'", path.display()))?;
    file.write_all_at(&Seeded::new(offset ^ 0xed17).bytes(4096), offset)?;
    Ok(())
}

/// Unpacks a Debian with Python, git and ping, and adds devices, ACLs, trusted attributes and inode flags.
///
/// The packages are fetched once per checkout, from where this machine gets its own.
pub fn debian_root(dir: &Path) -> Result {
    debian(dir, &debian_archive("", PACKAGES)?)
}

/// The same with the packages as they were released; [`debian_upgrade`] says what came after that.
pub fn debian_as_released(dir: &Path) -> Result {
    debian(dir, &debian_released()?)
}

/// What a Debian has in it, with all that they need.
const PACKAGES: &str = "python3-minimal,python3,iputils-ping,git,acl,e2fsprogs,sudo,openssh-client,perl,xz-utils";

fn debian(dir: &Path, archive: &Path) -> Result {
    unpack(archive, dir)?;
    let at = |path: &str| dir.join(path);
    device(&at("dev/fixture-disk"), FileType::BlockDevice, 7, 0)?;
    device(&at("dev/fixture-null"), FileType::CharacterDevice, 1, 3)?;
    sys::chownat(CWD, at("dev/fixture-disk"), None, Some(Gid::from_raw(6)), AtFlags::empty())?;
    succeed(Command::new("setfacl").args(["-m", "u:1000:rwx,g:mail:r-x,m:rwx"]).arg(at("srv")))?;
    succeed(Command::new("setfacl").args(["-d", "-m", "u:nobody:r--"]).arg(at("srv")))?;
    succeed(Command::new("setfacl").args(["-m", "u:1000:rw"]).arg(at("etc/fstab")))?;
    xattr(&at("etc/hostname"), "trusted.fixture", b"only root sees this\0\xff")?;
    xattr(&at("etc/debian_version"), "user.origin", b"fixture")?;
    flag(&at("etc/issue"), IFlags::IMMUTABLE)?;
    std::fs::write(at("var/log/fixture.log"), "lines are only added\n")?;
    flag(&at("var/log/fixture.log"), IFlags::APPEND)?;
    flag(&at("var/cache"), IFlags::NODUMP)?;
    expect_debian(dir)
}

/// Unpacks a Debian that can be started as a machine of its own, and in which packages can be installed.
pub fn debian_machine(dir: &Path) -> Result {
    unpack(&debian_archive("-machine", "systemd-sysv,git,openssh-client,ucf")?, dir)?;
    for timer in ["apt-daily.timer", "apt-daily-upgrade.timer"] {
        // It would have the locks of apt when nobody expects it.
        symlink("/dev/null", dir.join("etc/systemd/system").join(timer))?;
    }
    Ok(())
}

fn unpack(archive: &Path, dir: &Path) -> Result {
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"]).arg(archive).arg("-C").arg(dir);
    succeed(&mut tar).map(drop)
}

/// The things that make this tree worth testing on must really be in it.
fn expect_debian(dir: &Path) -> Result {
    let found = |what: &str, args: &[&str]| -> Result {
        let outcome = succeed(Command::new("find").arg(dir).args(args).arg("-print"))?;
        ensure!(!outcome.stdout.is_empty(), "the Debian tree has no {what}");
        Ok(())
    };
    found("setuid program", &["-type", "f", "-perm", "-4000"])?;
    found("setgid file", &["-type", "f", "-perm", "-2000"])?;
    found("hard link", &["-type", "f", "-links", "+1"])?;
    found("device", &["-type", "c"])?;
    found("file of another owner or group", &["-not", "-gid", "0"])?;
    let mut value = [0; 64];
    sys::lgetxattr(dir.join("usr/bin/ping"), "security.capability", &mut value)
        .context(|| "the Debian tree's ping has no capability")?;
    Ok(())
}

/// Writes to `dir` what `apt-get dist-upgrade` changes in [`debian_as_released`], and returns what it removes.
pub fn debian_upgrade(dir: &Path) -> Result<Vec<PathBuf>> {
    let (released, upgraded) = (debian_released()?, debian_upgraded()?);
    let (before, after) = (listed(&released)?, listed(&upgraded)?);
    let is_new = |(name, told): &(&String, &String)| before.get(*name) != Some(*told);
    let changed: Vec<&Path> = after.iter().filter(is_new).map(|(name, _)| Path::new(name)).collect();
    ensure!(!changed.is_empty(), "this Debian has no upgrades; nothing can be measured of it");
    // With the directories that they are in, which else would be made as they are made anywhere.
    let dirs: BTreeSet<&Path> =
        changed.iter().flat_map(|path| path.ancestors().skip(1)).filter(|dir| dir.starts_with("./")).collect();
    let names: Vec<_> = dirs.into_iter().chain(changed).map(|path| path.to_string_lossy()).collect();
    let list = dir.with_extension("list");
    std::fs::write(&list, names.join("\n"))?;
    let mut tar = Command::new("tar");
    tar.args([
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--no-recursion",
        "--no-unquote",
        "--verbatim-files-from",
        "-xpf",
    ]);
    succeed(tar.arg(&upgraded).arg("-C").arg(dir).arg("-T").arg(&list))?;
    std::fs::remove_file(&list)?;
    Ok(before.keys().filter(|name| !after.contains_key(*name)).map(PathBuf::from).collect())
}

/// Lists what is in an archive and no directory, each with what tar tells of it.
fn listed(archive: &Path) -> Result<BTreeMap<String, String>> {
    let told =
        succeed(Command::new("tar").args(["--full-time", "--numeric-owner", "--quoting-style=literal", "-tvf"]).arg(archive))?;
    let mut listed = BTreeMap::new();
    for line in told.text().lines().filter(|line| !line.starts_with('d')) {
        let at = line.find(" ./").ok_or_else(|| format!("cannot read '{line}', which tar tells"))?;
        let name = &line[at + 1..];
        let name = name.split_once(" -> ").or_else(|| name.split_once(" link to ")).map_or(name, |(name, _)| name);
        listed.insert(name.to_owned(), line.to_owned());
    }
    Ok(listed)
}

/// Returns a tar archive of a Debian with the newest of these packages; `name` tells it from others.
fn debian_archive(name: &str, include: &str) -> Result<PathBuf> {
    mmdebstrap(name, &["--variant=minbase", &format!("--include={include}")])
}

/// Returns one with the packages of the release, without what was mended in them since.
fn debian_released() -> Result<PathBuf> {
    let suite = packages::debian_suite()?;
    let pins = ["security", "updates"]
        .map(|part| format!("Package: *\\nPin: release n={suite}-{part}\\nPin-Priority: -1\\n\\n"))
        .concat();
    let pin =
        format!("--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\"; printf '{pins}' >\"$1/etc/apt/preferences.d/fixture\"");
    let unpin = "--customize-hook=rm \"$1/etc/apt/preferences.d/fixture\"";
    mmdebstrap("-released", &["--variant=minbase", &format!("--include={PACKAGES}"), &pin, unpin])
}

/// Returns one in which these were upgraded.
fn debian_upgraded() -> Result<PathBuf> {
    let unpack = format!("--setup-hook=tar --xattrs '--xattrs-include=*' -C \"$1\" -xpf '{}'", debian_released()?.display());
    let upgrade = "--customize-hook=APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get -qq -o DPkg::Chroot-Directory=\"$1\" dist-upgrade >/dev/null";
    mmdebstrap("-upgraded", &["--variant=custom", &unpack, upgrade])
}

/// Returns a tar archive that mmdebstrap makes, made once.
fn mmdebstrap(name: &str, args: &[&str]) -> Result<PathBuf> {
    let cache = target_dir().join("fixtures");
    let suite = packages::debian_suite()?;
    let archive = cache.join(format!("debian-{suite}{name}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    std::fs::create_dir_all(&cache)?;
    let unfinished = cache.join("unfinished.tar");
    let mut command = Command::new("mmdebstrap");
    command.arg("--quiet").args(args).args(apt_options()?).arg(&suite).arg(&unfinished).args(apt_sources()?);
    succeed(&mut command).context(|| "cannot make the Debian tree")?;
    std::fs::rename(&unfinished, &archive)?;
    Ok(archive)
}

/// Returns the files that say where this machine gets its packages.
fn apt_sources() -> Result<Vec<PathBuf>> {
    let mut sources: Vec<PathBuf> = Vec::new();
    let list = Path::new("/etc/apt/sources.list");
    if std::fs::read_to_string(list).is_ok_and(|text| text.lines().any(|line| line.starts_with("deb"))) {
        sources.push(list.to_owned());
    }
    for entry in std::fs::read_dir("/etc/apt/sources.list.d")? {
        let path = entry?.path();
        // Other people's archives are of no use here, and their keys may be missing.
        let is_debian = std::fs::read_to_string(&path).is_ok_and(|text| text.contains("debian"));
        let is_read = path.extension().is_some_and(|end| end == "sources" || end == "list");
        if is_read && is_debian && path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains("debian")) {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// Returns how this machine reaches its archive, proxies above all, as options of mmdebstrap.
fn apt_options() -> Result<Vec<String>> {
    const KEPT: &[&str] = &["proxy", "check-valid-until", "check-date", "verify-peer", "cainfo"];
    let dump = succeed(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let is_kept = |line: &&str| {
        let key = line.split(' ').next().unwrap_or_default().to_lowercase();
        !line.ends_with("\"\";") && KEPT.iter().any(|kept| key.contains(kept))
    };
    Ok(dump.text().lines().filter(is_kept).map(|line| format!("--aptopt={line}")).collect())
}

/// Makes one of everything that Linux allows and programs get wrong. Needs root.
pub fn oddities(dir: &Path) -> Result {
    names(&dir.join("names"))?;
    our_own_words(dir)?;
    types(&dir.join("types"))?;
    sizes(&dir.join("sizes"))?;
    links(&dir.join("links"))?;
    repositories(&dir.join("repositories"))?;
    attributes(&dir.join("attributes"))?;
    owners(&dir.join("owners"))?;
    long_path(&dir.join("long"))?;
    times(&dir.join("times"))
}

fn names(dir: &Path) -> Result {
    use std::os::unix::ffi::OsStringExt;
    std::fs::create_dir_all(dir)?;
    let all_bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let odd: &[&[u8]] = &[
        b"new\nline",
        b"escape\x1b[31mred",
        b"latin \xe4\xf6\xfc \xff\xfe",
        "precomposed \u{e9}".as_bytes(),
        "decomposed e\u{301}".as_bytes(),
        b"-rf",
        b"--",
        b"back\\slash\\",
        b"trailing space ",
        b" leading space",
        b"trailing dot.",
        b"...",
        b"%2e",
        b"%2E%67it",
        b"100%",
        b"tab\there",
        b"quote\"'`$(x)",
        b"*",
        b"?",
        b"[a]",
        b":(top)magic",
        b"#comment",
        b"!bang",
        b"~",
        b"Case",
        b"case",
        b"CON",
        b"git~1",
        b"GIT~1",
        b".GIT",
        b".git ",
        b".git.",
        b".git::$INDEX_ALLOCATION",
        b".git\\config",
        ".g\u{200c}it".as_bytes(),
        b".gitmodules ",
        &[b'n'; 255],
        &all_bytes[..127],
        &all_bytes[127..],
    ];
    for name in odd {
        let name = dir.join(OsString::from_vec(name.to_vec()));
        std::fs::write(&name, b"named oddly\n").context(|| format!("cannot create '{}'", name.display()))?;
    }
    for name in ["dir with\nnewline", "-dir", "%2e%2e", "git~2", ".Git", "case-dir", "Case-Dir", "empty"] {
        std::fs::create_dir(dir.join(name))?;
    }
    std::fs::write(dir.join("git~2/inside"), "x")?;
    std::fs::write(dir.join(".Git/inside"), "x")?;
    std::fs::write(dir.join("%2e%2e/inside"), "x")?;
    Ok(())
}

/// Names and contents that the program itself gives a meaning.
fn our_own_words(dir: &Path) -> Result {
    let own = dir.join(".git-devops");
    std::fs::create_dir_all(own.join("meta/etc"))?;
    std::fs::create_dir_all(own.join("alt"))?;
    std::fs::write(own.join("meta/etc/.m"), "mode=0777 passwd\n")?;
    std::fs::write(own.join("attributes"), "** ignore\n")?;
    std::fs::write(own.join("alt/%2egit"), "x")?;
    std::fs::write(dir.join(".m"), "not metadata\n")?;
    std::fs::create_dir_all(dir.join("words/.m/.m"))?;
    std::fs::write(dir.join("words/.m/.m/.m"), "x")?;
    std::fs::create_dir_all(dir.join("words/.git-devops/.m"))?;
    std::fs::write(dir.join("words/looks-like-an-index"), "git-devops chunk-index 1\nroot 00\nsize 5\n")?;
    let mut large = b"git-devops chunk-index 1\n".to_vec();
    large.extend(Seeded::new(4).bytes(2 * LARGE as usize));
    std::fs::write(dir.join("words/looks-like-a-large-index"), large)?;
    std::fs::write(dir.join("words/only-the-magic"), "git-devops chunk-index 1\n")?;
    std::fs::write(dir.join(".gitignore"), "*\n")?;
    std::fs::write(dir.join(".gitattributes"), "* text=auto\n*.crlf text eol=lf\n*.up filter=up ident\n")?;
    std::fs::write(dir.join("words/dos.txt"), "one\r\ntwo\r\n")?;
    std::fs::write(dir.join("words/dos.crlf"), "one\r\ntwo\r\n")?;
    std::fs::write(dir.join("words/ident.up"), "$Id$\n")?;
    std::fs::write(dir.join("words/pointer.lfs"), "version https://git-lfs.github.com/spec/v1\nsize 1\n")?;
    std::fs::create_dir_all(dir.join("words/modules-link"))?;
    std::fs::write(dir.join(".gitmodules"), "[submodule \"../../x\"]\n\tpath = -x\n\turl = -u./payload\n")?;
    symlink("/etc/passwd", dir.join("words/modules-link/.gitmodules"))?;
    symlink("../.gitattributes", dir.join("words/modules-link/.gitattributes"))?;
    Ok(())
}

fn types(dir: &Path) -> Result {
    std::fs::create_dir_all(dir.join("empty/nested/empty"))?;
    let at = |name: &str| dir.join(name);
    sys::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    sys::mknodat(CWD, at("socket"), FileType::Socket, Mode::from_raw_mode(0o755), 0)?;
    device(&at("char"), FileType::CharacterDevice, 1, 3)?;
    device(&at("block"), FileType::BlockDevice, 7, 1)?;
    device(&at("large-numbers"), FileType::CharacterDevice, 511, 1_048_575)?;
    symlink("nowhere", at("dangling"))?;
    symlink("/etc/passwd", at("absolute"))?;
    symlink("types", at("to-itself"))?;
    symlink("loop", at("loop"))?;
    symlink("../../../../../../etc", at("outside"))?;
    symlink("a".repeat(4095), at("longest"))?;
    let odd_target: OsString = std::os::unix::ffi::OsStringExt::from_vec(b"\xff\n\\\x1b target ".to_vec());
    symlink(odd_target, at("odd-target"))?;
    Ok(())
}

fn sizes(dir: &Path) -> Result {
    std::fs::create_dir_all(dir)?;
    let mut seeded = Seeded::new(5);
    for len in [0, 1, LARGE - 1, LARGE, LARGE + 1, 4 * MIB, 33 * MIB + 5] {
        std::fs::write(dir.join(format!("{len}-bytes")), seeded.bytes(len as usize))?;
    }
    std::fs::write(dir.join("zeros-written"), vec![0; MIB as usize])?;
    std::fs::write(dir.join("small-zeros-written"), vec![0; 5000])?;
    std::fs::write(dir.join("same-1"), Seeded::new(6).bytes(MIB as usize))?;
    std::fs::write(dir.join("same-2"), Seeded::new(6).bytes(MIB as usize))?;
    let sparse: &[(&str, u64, &[u64])] = &[
        ("sparse-4-gib", 4 * GIB, &[0, GIB, 4 * GIB - 4096]),
        ("sparse-8-gib", 8 * GIB, &[5 * GIB]),
        ("sparse-over-4-gib", 4 * GIB + 1, &[4 * GIB - 4096]),
        ("only-a-hole", 4 * MIB, &[]),
        ("small-only-a-hole", 12_288, &[]),
        ("small-with-a-hole", 12_288, &[8192]),
        ("small-trailing-hole", 20_000, &[0]),
        ("trailing-hole", 3 * MIB + 1, &[0, 4096]),
        ("leading-hole", 2 * MIB, &[2 * MIB - 4096]),
    ];
    for (name, len, data_at) in sparse {
        let file = File::create(dir.join(name))?;
        file.set_len(*len)?;
        for at in *data_at {
            file.write_all_at(&seeded.bytes(4096), *at)?;
        }
    }
    Ok(())
}

fn links(dir: &Path) -> Result {
    std::fs::create_dir_all(dir.join("a/b"))?;
    std::fs::create_dir_all(dir.join("z"))?;
    std::fs::write(dir.join("a/small"), "linked\n")?;
    std::fs::write(dir.join("a/large"), Seeded::new(7).bytes(300_000))?;
    symlink("target", dir.join("a/symlink"))?;
    sys::mknodat(CWD, dir.join("a/fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    device(&dir.join("a/device"), FileType::CharacterDevice, 1, 5)?;
    for name in ["small", "large", "symlink", "fifo", "device"] {
        // Some before and some after the first name, so that no order helps.
        for other in [format!("a/b/{name}"), format!("z/{name}"), format!("{name}-at-top")] {
            sys::linkat(CWD, dir.join("a").join(name), CWD, dir.join(other), AtFlags::empty())?;
        }
    }
    Ok(())
}

fn repositories(dir: &Path) -> Result {
    for name in ["nested", "nested/inner"] {
        let repo = dir.join(name);
        std::fs::create_dir_all(&repo)?;
        std::fs::write(repo.join("file"), format!("in {name}\n"))?;
        git(&repo, &["init", "-q", "-b", "main"])?;
        git(&repo, &["add", "file"])?;
        git(&repo, &["commit", "-q", "-m", "a commit of its own"])?;
    }
    std::fs::write(dir.join("nested/uncommitted"), "x")?;
    let nested = dir.join("nested").into_os_string().into_string().map_err(|_| "the fixture's directory is not UTF-8")?;
    git(dir, &["clone", "-q", "--bare", &nested, "bare.git"])?;
    std::fs::create_dir_all(dir.join("empty-dot-git/.git"))?;
    std::fs::create_dir_all(dir.join("file-dot-git"))?;
    std::fs::write(dir.join("file-dot-git/.git"), "gitdir: /nowhere\n")?;
    std::fs::create_dir_all(dir.join("link-dot-git"))?;
    symlink("../nested/.git", dir.join("link-dot-git/.git"))?;
    Ok(())
}

fn git(dir: &Path, args: &[&str]) -> Result {
    let mut git = Command::new("git");
    git.current_dir(dir).args(["-c", "init.templateDir=", "-c", "commit.gpgSign=false"]).args(args);
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(variable);
    }
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "Fixture").env(format!("GIT_{role}_EMAIL"), "fixture@example.org");
        git.env(format!("GIT_{role}_DATE"), "2001-02-03T04:05:06Z");
    }
    succeed(&mut git).map(drop)
}

fn attributes(dir: &Path) -> Result {
    std::fs::create_dir_all(dir.join("dir"))?;
    let at = |name: &str| dir.join(name);
    std::fs::write(at("file"), "x")?;
    std::fs::write(at("large"), Seeded::new(8).bytes(200_000))?;
    symlink("file", at("symlink"))?;
    sys::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    sys::mknodat(CWD, at("socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0)?;
    device(&at("device"), FileType::BlockDevice, 7, 2)?;
    for name in ["file", "large", "dir", "symlink", "fifo", "socket", "device"] {
        xattr(&at(name), "trusted.on-every-type", name.as_bytes())?;
    }
    for name in ["file", "large", "dir"] {
        xattr(&at(name), "user.binary", b"\0\xff\n=\x1b")?;
        xattr(&at(name), "user.empty", b"")?;
        xattr(&at(name), "user.odd name\n=\u{e9}", &[b'v'; 2000])?;
    }
    let acl = |args: &[&str], name: &str| succeed(Command::new("setfacl").args(args).arg(at(name))).map(drop);
    acl(&["-m", "u:12345:rwx,g:54321:r,m:rx"], "file")?;
    acl(&["-m", "u:daemon:rwx"], "dir")?;
    acl(&["-d", "-m", "u:daemon:rwx,g:mail:r-x,o::---"], "dir")?;
    std::fs::write(at("dir/inherits"), "x")?;
    succeed(Command::new("setcap").arg("cap_net_raw,cap_net_admin=ep").arg(at("large")))?;
    std::fs::create_dir(at("flags"))?;
    std::fs::create_dir(at("flags/immutable-dir"))?;
    for name in ["immutable", "append", "nodump", "both", "immutable-dir/inside", "large-immutable"] {
        std::fs::write(at("flags").join(name), Seeded::new(9).bytes(if name.starts_with("large") { 300_000 } else { 10 }))?;
    }
    flag(&at("flags/immutable"), IFlags::IMMUTABLE)?;
    flag(&at("flags/large-immutable"), IFlags::IMMUTABLE)?;
    flag(&at("flags/append"), IFlags::APPEND)?;
    flag(&at("flags/nodump"), IFlags::NODUMP | IFlags::NOATIME)?;
    flag(&at("flags/both"), IFlags::IMMUTABLE | IFlags::APPEND)?;
    flag(&at("flags/immutable-dir"), IFlags::IMMUTABLE)
}

fn owners(dir: &Path) -> Result {
    std::fs::create_dir_all(dir)?;
    let modes: &[(&str, u32)] = &[
        ("setuid", 0o4755),
        ("setgid", 0o2755),
        ("all", 0o7777),
        ("none", 0o000),
        ("sticky-file", 0o1644),
        ("write-only", 0o222),
        ("executable", 0o711),
        ("setuid-not-executable", 0o4644),
    ];
    let owners: &[(&str, u32, u32)] =
        &[("root", 0, 0), ("named", 1, 8), ("nameless", 54_321, 65_001), ("highest", 4_294_967_294, 7)];
    for (owner, uid, gid) in owners {
        let home = dir.join(owner);
        std::fs::create_dir(&home)?;
        for (name, mode) in modes {
            let path = home.join(name);
            std::fs::write(&path, *name)?;
            own(&path, *uid, *gid, *mode)?;
        }
        std::fs::write(home.join("large"), Seeded::new(10).bytes(150_000))?;
        own(&home.join("large"), *uid, *gid, 0o4750)?;
        symlink("all", home.join("symlink"))?;
        sys::chownat(CWD, home.join("symlink"), Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)), AtFlags::SYMLINK_NOFOLLOW)?;
        own(&home, *uid, *gid, if *uid == 0 { 0o3777 } else { 0o2700 })?;
    }
    Ok(())
}

fn own(path: &Path, uid: u32, gid: u32, mode: u32) -> Result {
    sys::chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    // After the owner, whose change takes setuid away.
    sys::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
    Ok(())
}

/// A path of more than 4096 bytes, which can be reached only from directory to directory.
fn long_path(dir: &Path) -> Result {
    std::fs::create_dir_all(dir)?;
    let mut here: OwnedFd = sys::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for level in 0..20 {
        let name = format!("{level:0>250}");
        sys::mkdirat(&here, &name, Mode::from_raw_mode(0o755))?;
        here = sys::openat(&here, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    for (name, len) in [("small", 10), ("large", 200_000)] {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let file = sys::openat(&here, name, flags, Mode::from_raw_mode(0o4755))?;
        File::from(file).write_all(&Seeded::new(11).bytes(len))?;
    }
    sys::symlinkat("small", &here, "symlink")?;
    Ok(())
}

fn times(dir: &Path) -> Result {
    std::fs::create_dir_all(dir)?;
    let moments: &[(&str, i64, i64)] = &[
        ("epoch", 0, 0),
        ("one-nanosecond", 0, 1),
        ("before-1970", -1, 999_999_999),
        ("1906", -2_000_000_000, 123_456_789),
        ("2038", 2_147_483_648, 1),
        ("2106", 4_294_967_296, 999_999_999),
        ("2440", 14_831_769_600, 5),
    ];
    for (name, seconds, nanoseconds) in moments {
        let at = |kind: &str| dir.join(format!("{name}-{kind}"));
        std::fs::write(at("file"), "x")?;
        std::fs::write(at("large"), Seeded::new(12).bytes(140_000))?;
        std::fs::create_dir(at("dir"))?;
        symlink("x", at("symlink"))?;
        sys::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        for kind in ["file", "large", "dir", "symlink", "fifo"] {
            let moment = Timespec { tv_sec: *seconds, tv_nsec: *nanoseconds };
            let both = Timestamps { last_access: moment, last_modification: moment };
            sys::utimensat(CWD, at(kind), &both, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

fn device(path: &Path, kind: FileType, major: u32, minor: u32) -> Result {
    sys::mknodat(CWD, path, kind, Mode::from_raw_mode(0o660), sys::makedev(major, minor))
        .context(|| format!("cannot make device '{}'", path.display()))
}

fn xattr(path: &Path, name: &str, value: &[u8]) -> Result {
    sys::lsetxattr(path, name, value, XattrFlags::empty()).context(|| format!("cannot set '{name}' on '{}'", path.display()))
}

fn flag(path: &Path, flags: IFlags) -> Result {
    let what = || format!("cannot set flags on '{}'", path.display());
    let file = sys::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    let all = sys::ioctl_getflags(file.as_fd()).context(what)? | flags;
    sys::ioctl_setflags(&file, all).context(what)
}

/// Removes a tree with all that resists it.
pub fn remove(dir: &Path) -> Result {
    if !dir.exists() {
        return Ok(());
    }
    let mut rm = Command::new("rm");
    rm.args(["-rf", "--"]).arg(dir);
    if run(&mut rm)?.code != 0 {
        // Only now, because it opens every file: immutable ones do not go.
        run(Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(dir))?;
        succeed(&mut rm)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Options, What, compare};

    fn scratch(name: &str) -> PathBuf {
        let dir = target_dir().join("xtask-tests").join(name);
        remove(&dir).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn differences(a: &Path, b: &Path) -> std::collections::BTreeSet<What> {
        compare(a, b, &Options::default()).unwrap().into_iter().map(|found| found.what).collect()
    }

    #[test]
    fn what_is_built_twice_is_the_same_but_for_the_time() {
        let dir = scratch("twice");
        for half in ["a", "b"] {
            let tree = dir.join(half);
            std::fs::create_dir(&tree).unwrap();
            many_files(&tree, 300).unwrap();
            big_dir(&tree, 100).unwrap();
            media(&tree, 3_000_000).unwrap();
            disk_image(&tree.join("disk.img"), 64 * MIB, 4 * MIB).unwrap();
            edit_4k(&tree.join("disk.img"), 12_288).unwrap();
        }
        assert_eq!(differences(&dir.join("a"), &dir.join("b")), [What::Mtime].into());
        remove(&dir).unwrap();
    }

    #[test]
    fn an_edit_changes_4_kib_of_content_and_nothing_else() {
        let dir = scratch("edit");
        for half in ["a", "b"] {
            std::fs::create_dir(dir.join(half)).unwrap();
            disk_image(&dir.join(half).join("disk.img"), 64 * MIB, 4 * MIB).unwrap();
        }
        edit_4k(&dir.join("b/disk.img"), 8192).unwrap();
        let found = compare(&dir.join("a"), &dir.join("b"), &Options::default()).unwrap();
        assert!(found.iter().any(|found| found.detail == "differs at byte 8192"), "{found:?}");
        assert!(found.iter().all(|found| matches!(found.what, What::Content | What::Mtime)), "{found:?}");
        remove(&dir).unwrap();
    }

    #[test]
    fn copying_the_oddities_by_cp_loses_what_cp_is_known_to_lose() {
        if !packages::is_root() {
            return;
        }
        let dir = scratch("oddities");
        std::fs::create_dir(dir.join("a")).unwrap();
        oddities(&dir.join("a")).unwrap();
        remove(&dir.join("a/long")).unwrap(); // beyond cp
        succeed(Command::new("cp").args(["-a", "a", "b"]).current_dir(&dir)).unwrap();
        assert_eq!(differences(&dir.join("a"), &dir.join("b")), [What::Flags].into());
        remove(&dir).unwrap();
    }
}
