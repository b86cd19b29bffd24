//! `gdo release`

use std::ffi::OsString;
use std::os::fd::AsFd;

use git_devops::error::Result;
use git_devops::repo::Repo;
use git_devops::repo::releases::{self, Order};
use git_devops::trust::gpg::Signer;
use git_devops::trust::release::Version;
use git_devops::trust::{Release, TypeName};
use serde_json::{Value, json};

use super::commit::identity;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, time, usage};

/// Sign what hosts of a type should have
///
/// Makes the tag 'release/TYPE/NUMBER' on the last commit of the branch TYPE, signed by gpg with your key. Hosts that trust that key take it with their next
/// 'gdo fetch'. Pushing commits alone moves no host.
#[derive(clap::Args)]
pub struct ReleaseArgs {
    /// The machine type [default: the branch that HEAD stands on]
    #[arg(value_name = "TYPE")]
    kind: Option<String>,
    /// Release this commit instead of the last one of the branch TYPE
    #[arg(short, long, value_name = "REV")]
    source: Option<String>,
    /// Until when it counts: hosts take nothing from a release that is older than this many days
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    expires: u64,
    /// The key to sign with, in any of gpg's notations [default: the setting devops.signingkey]
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Hosts with an older program than this refuse it
    #[arg(long, value_name = "VERSION")]
    min_version: Option<String>,
    /// Tell what would be signed, and sign nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// List the releases that are here, the newest last, instead of making one
    #[arg(long, conflicts_with_all = ["source", "key", "dry_run", "min_version"])]
    list: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &ReleaseArgs) -> Result<()> {
    let repo = global.repo()?;
    let kind = args.kind.as_deref().map(str::parse::<TypeName>).transpose()?;
    if args.list {
        return list(ui, &repo, kind.as_ref());
    }
    let head = || repo.git.head_ref().map(|name| name.and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned)));
    let kind = match kind {
        Some(kind) => kind,
        None => head()?.ok_or_else(|| usage("HEAD stands on no branch; name the type"))?.parse()?,
    };
    let now = moment().wall;
    let order = Order {
        kind,
        source: args.source.clone(),
        days: args.expires,
        min_version: args.min_version.as_deref().map_or(Ok(Version::FIRST), str::parse)?,
        tagger: identity(&repo),
        now,
    };
    let draft = releases::draft(&repo, &order)?;
    if !args.dry_run {
        releases::publish(&repo, &draft, &signer(&repo, args.key.as_deref())?, now)?;
    }
    let release = &draft.release;
    ui.json(|| to_json(release))?;
    let done = if args.dry_run { "would make" } else { "made" };
    let after = draft.before.map_or(String::new(), |before| format!(", after {before}"));
    ui.note(format_args!(
        "{done} {} of commit {}{after}; it counts until {}",
        release.name,
        release.commit,
        time(release.expires)
    ))
}

fn list(ui: &mut Ui, repo: &Repo, kind: Option<&TypeName>) -> Result<()> {
    let trust = releases::trust(repo)?;
    let mut listed = Vec::new();
    for (name, tag) in releases::list(repo)?.into_iter().filter(|(name, _)| kind.is_none_or(|kind| name.kind == *kind)) {
        let is_accepted = trust.as_ref().and_then(|trust| trust.accepted(&name.kind)).is_some_and(|floor| floor.tag == tag);
        let release = releases::read(&repo.objects, &tag).ok().map(|signed| signed.release);
        listed.push((name, release, is_accepted));
    }
    ui.json(|| {
        let one = |(name, release, is_accepted): &(_, Option<Release>, bool)| {
            let name: &git_devops::trust::ReleaseName = name;
            json!({"name": name.to_string(), "accepted": is_accepted, "release": release.as_ref().map(to_json)})
        };
        json!({"releases": listed.iter().map(one).collect::<Vec<_>>()})
    })?;
    listed.iter().try_for_each(|(name, release, is_accepted)| {
        let standing = if *is_accepted { "\taccepted" } else { "" };
        match release {
            Some(release) => ui.line(format_args!("{name}\t{}\tuntil {}{standing}", release.commit, time(release.expires))),
            None => ui.line(format_args!("{name}\tis no release")),
        }
    })
}

/// Returns a release as `--json` shows it.
pub fn to_json(release: &Release) -> Value {
    json!({
        "name": release.name.to_string(), "type": release.name.kind.as_str(), "epoch": release.name.epoch, "seq": release.name.seq,
        "prev": release.prev.map(|oid| oid.to_string()), "commit": release.commit.to_string(), "manifest": release.manifest.to_string(),
        "issued": release.issued, "expires": release.expires, "min_version": release.min_version.to_string(),
    })
}

/// Returns whose key signs: the named one, else that of the setting `devops.signingkey`.
pub fn signer(repo: &Repo, key: Option<&str>) -> Result<Signer> {
    let setting = || repo.config.get("devops.signingkey").map(|value| String::from_utf8_lossy(value).into_owned());
    signer_of(key.map(str::to_owned).or_else(setting))
}

/// Returns the signer with this key, and what of the environment gpg needs to ask its owner.
pub fn signer_of(key: Option<String>) -> Result<Signer> {
    let key = key.filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| usage("say with --key whose key signs; 'git config --file FILE devops.signingkey ID', with the file 'config' of the repository, keeps it"))?;
    let names = [
        "HOME",
        "GNUPGHOME",
        "GPG_TTY",
        "TERM",
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "XAUTHORITY",
        "XDG_RUNTIME_DIR",
        "DBUS_SESSION_BUS_ADDRESS",
    ];
    let mut environment: Vec<(OsString, OsString)> =
        names.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect();
    let tty = rustix::termios::ttyname(std::io::stdin().as_fd(), Vec::new());
    if let (None, Ok(tty)) = (std::env::var_os("GPG_TTY"), tty) {
        environment.push(("GPG_TTY".into(), tty.to_string_lossy().into_owned().into()));
    }
    Ok(Signer { key, environment })
}
