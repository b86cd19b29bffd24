//! What was stored comes back in every detail, and storing it touches nothing.

use crate::command::{Context, Result};
use crate::{ensure, fixtures};

use super::{Place, World, fingerprint, touched};

pub fn debian_root(world: &World) -> Result<String> {
    let place = world.place("debian-root")?;
    fixtures::debian_root(&place.work)?;
    comes_back(&place)
}

pub fn oddities(world: &World) -> Result<String> {
    let place = world.place("oddities")?;
    fixtures::oddities(&place.work)?;
    comes_back(&place)
}

pub fn big_dir(world: &World) -> Result<String> {
    let place = world.place("big-dir")?;
    fixtures::big_dir(&place.work, 100_000)?;
    comes_back(&place)
}

fn comes_back(place: &Place) -> Result<String> {
    let before = fingerprint(&place.work)?;
    place.init()?;
    let stored = place.snapshot("the whole tree")?;
    let touched = touched(&before, &fingerprint(&place.work)?);
    ensure!(touched.is_empty(), "storing touched the work tree: {touched:?}");
    place.restores_exactly()?;
    place.checks_clean().context(|| "after the restore")?;
    Ok(format!("{} entries stored in {:.1} s", before.len(), stored.wall.as_secs_f64()))
}
