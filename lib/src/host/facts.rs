//! What is known of this host by itself: read from its files, from no network, and from what an administrator put there.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::env::{Facts, is_name, is_value};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::repo::Places;
use crate::safepath::Dir;

/// Where the facts of an administrator are, in the state directory: a file for each, its name that of the fact.
pub const DIR: &str = "facts";

/// As much is read of a file that tells a fact.
const MAX_FILE: u64 = 1 << 20;
const MAX_FACTS: usize = 1000;

/// Returns the facts of the host whose instance lies at `places` and which is of the machine type `kind`; what an administrator says comes first.
pub fn gather(places: &Places, kind: Option<&str>) -> Result<Facts> {
    let top = if places.is_system() { places.work_tree.as_path() } else { Path::new("/") };
    let root = Dir::open(top).context(|| format!("cannot open '{}'", top.display()))?;
    let kernel = || durable::read_if_there(Path::new("/proc/sys/kernel/hostname"));
    let hostname = match text(&root, b"etc", b"hostname")?.as_deref().and_then(first_word) {
        Some(name) => Some(name.to_owned()),
        None => kernel()?.and_then(|name| first_word(&String::from_utf8_lossy(&name)).map(str::to_owned)),
    };
    let mut facts = Facts::new();
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty() && is_value(value)) {
            facts.insert(name.to_owned(), value.to_owned());
        }
    };
    if let Some(full) = &hostname {
        let short = full.split('.').next().unwrap_or(full);
        let hosts = text(&root, b"etc", b"hosts")?.unwrap_or_default();
        add("hostname", Some(short));
        add("fqdn", Some(if full.contains('.') { full } else { full_name(&hosts, short).unwrap_or(short) }));
    }
    let release = match text(&root, b"usr/lib", b"os-release")? {
        Some(release) => release,
        None => text(&root, b"etc", b"os-release")?.unwrap_or_default(),
    };
    add("os-id", release_value(&release, "ID"));
    add("os-version", release_value(&release, "VERSION_ID"));
    add("arch", Some(std::env::consts::ARCH));
    add("type", kind);
    facts.extend(administrators(&places.state.join(DIR))?);
    Ok(facts)
}

/// Reads the files in which an administrator tells facts.
fn administrators(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut facts = BTreeMap::new();
    if !durable::is_dir(dir) {
        return Ok(facts);
    }
    for found in durable::list(dir).context(|| format!("cannot list '{}'", dir.display()))? {
        let what = || format!("cannot use fact '{}'", found.path.display());
        let name = found.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let bytes = durable::read(&found.path).context(what)?;
        let value = std::str::from_utf8(&bytes).ok().map(|text| text.strip_suffix('\n').unwrap_or(text));
        let value = value.filter(|value| is_name(name) && is_value(value) && !value.contains(char::is_control));
        let value = value
            .ok_or_else(|| Error::new(Kind::Refused, "it is to be one line of text, in a file named as a fact is"))
            .context(what)?;
        facts.insert(name.to_owned(), value.to_owned());
        if facts.len() > MAX_FACTS {
            return Err(Error::new(Kind::Refused, format!("there are more than {MAX_FACTS} facts in '{}'", dir.display())));
        }
    }
    Ok(facts)
}

/// Returns the text of a file below `root`; `None` if it is not there as a regular file that somebody can read as text.
fn text(root: &Dir, dir: &[u8], name: &[u8]) -> Result<Option<String>> {
    let file = match root.open_path(dir).and_then(|dir| dir.open_file(name)) {
        Ok(file) => file,
        Err(_) => return Ok(None),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes).ok())
}

fn first_word(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Returns the name in `hosts(5)` that is `short` with a domain.
fn full_name<'a>(hosts: &'a str, short: &str) -> Option<&'a str> {
    let words = hosts.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_ascii_whitespace().skip(1));
    words.into_iter().find(|word| word.strip_prefix(short).is_some_and(|rest| rest.starts_with('.')))
}

/// Returns a value of `os-release(5)`.
fn release_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?.trim();
    Some(value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_system_tell_its_facts() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        for dir in ["etc", "usr/lib", "var/lib/git-devops/facts"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        let write = |path: &str, text: &str| std::fs::write(root.join(path), text).unwrap();
        write("etc/hostname", "# a comment\nweb1\n");
        write("etc/hosts", "127.0.0.1 localhost\n10.0.0.1 web10.example.org web1.example.org web1 # web1.nowhere\n");
        write("usr/lib/os-release", "NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n");
        write("var/lib/git-devops/facts/rack", "7\n");
        let facts = || gather(&Places::system(root), Some("web"));
        let told: Vec<String> = facts().unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let arch = format!("arch={}", std::env::consts::ARCH);
        assert_eq!(
            told,
            [&arch, "fqdn=web1.example.org", "hostname=web1", "os-id=debian", "os-version=12", "rack=7", "type=web"]
        );
        write("var/lib/git-devops/facts/hostname", "mine");
        assert_eq!(facts().unwrap()["hostname"], "mine", "an administrator knows better");
        write("var/lib/git-devops/facts/Bad", "x");
        assert!(facts().unwrap_err().to_string().contains("facts/Bad"));
    }
}
