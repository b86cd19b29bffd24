//! `gdo verify`

use git_devops::error::{Error, Kind, Reason, Result};
use git_devops::repo::Repo;
use git_devops::repo::releases::{self, Standing, Verified};
use git_devops::trust::ReleaseName;
use serde_json::{Value, json};

use super::release::to_json;
use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, complain, shown, time};

/// Check releases against the keys that are trusted here
///
/// Signature, rules, and every file of the tree. The exit code is 65 if one is refused.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// A release ('release/web/7'), or a commit that was released; without it, what this host goes by
    #[arg(value_name = "TAG|REV")]
    what: Option<String>,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &VerifyArgs) -> Result<()> {
    let repo = global.repo()?;
    let now = moment().wall;
    let names = names(&repo, args.what.as_deref())?;
    let found: Vec<(ReleaseName, Result<Verified>)> =
        names.into_iter().map(|name| (name.clone(), releases::verify(&repo, &name, now))).collect();
    // What cannot be looked at at all is no refusal.
    let found = found.into_iter().map(|(name, verified)| match verified {
        Err(error) if error.reason().is_none() && error.kind() != Kind::Refused => Err(error),
        verified => Ok((name, verified)),
    });
    let found: Vec<(ReleaseName, Result<Verified>)> = found.collect::<Result<_>>()?;
    ui.json(|| json!({"releases": found.iter().map(|(name, verified)| verified_json(name, verified)).collect::<Vec<_>>()}))?;
    found.iter().try_for_each(|(name, verified)| tell(ui, name, verified))
}

fn names(repo: &Repo, what: Option<&str>) -> Result<Vec<ReleaseName>> {
    let Some(what) = what else {
        let trust = releases::trust(repo)?.ok_or_else(nobody)?;
        let name = |(kind, floor): (&git_devops::trust::TypeName, &git_devops::trust::Accepted)| ReleaseName {
            kind: kind.clone(),
            epoch: floor.epoch,
            seq: floor.seq,
        };
        let names: Vec<ReleaseName> = trust.all_accepted().map(name).collect();
        let none = "no release is accepted here yet; 'gdo fetch' brings some";
        return if names.is_empty() { Err(Error::new(Kind::NotFound, none)) } else { Ok(names) };
    };
    if let Ok(name) = what.parse::<ReleaseName>() {
        return Ok(vec![name]);
    }
    let commit = repo.git.resolve(what)?;
    let is_of =
        |tag: &git_devops::git::Oid| releases::read(&repo.objects, tag).is_ok_and(|signed| signed.release.commit == commit);
    let names: Vec<ReleaseName> = releases::list(repo)?.into_iter().filter(|(_, tag)| is_of(tag)).map(|(name, _)| name).collect();
    match names.is_empty() {
        true => Err(Error::new(Kind::NotFound, format!("commit {commit} was not released; 'gdo release --list' lists what was"))),
        false => Ok(names),
    }
}

/// Returns the error that no key is trusted.
pub fn nobody() -> Error {
    Error::new(Kind::NotFound, "no key is trusted here; 'gdo trust init' begins with one")
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Accepted => "accepted",
        Standing::Superseded => "superseded",
        Standing::Acceptable => "acceptable",
    }
}

fn verified_json(name: &ReleaseName, verified: &Result<Verified>) -> Value {
    match verified {
        Ok(verified) => json!({
            "name": name.to_string(), "standing": standing(verified.standing), "release": to_json(&verified.release),
            "key": verified.signer.map(|key| key.to_string()),
        }),
        Err(error) => {
            json!({"name": name.to_string(), "standing": "refused", "id": error.reason().map(Reason::id), "message": format!("{error:#}")})
        }
    }
}

fn tell(ui: &mut Ui, name: &ReleaseName, verified: &Result<Verified>) -> Result<()> {
    match verified {
        Ok(Verified { release, signer, standing: how }) => {
            let by = signer.map_or("in the history of a later one".to_owned(), |key| format!("signed by {key}"));
            ui.line(format_args!("{name}: {}, {by}, commit {}, until {}", standing(*how), release.commit, time(release.expires)))
        }
        Err(error) => {
            ui.exit_with(exit::code(error.kind()));
            complain(format_args!("{name}: {}", shown(error.told().as_bytes())));
            Ok(())
        }
    }
}
