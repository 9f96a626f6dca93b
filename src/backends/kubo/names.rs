//! Names: direct pins that are called by them. See `holder` for what is pinned.

use std::collections::BTreeMap;

use super::holder::NamePin;
use super::listing::Named;
use crate::backends::{BackendError, check};
use crate::types::Cid;

/// Names that begin with `prefix`, sorted, with their CIDs.
pub(in crate::backends) async fn all(
    place: &dyn Named,
    prefix: &str,
) -> Result<Vec<(String, Cid)>, BackendError> {
    let mut newest: BTreeMap<String, NamePin> = BTreeMap::new();
    for pin in place.name_pins(prefix).await? {
        match newest.get(&pin.name) {
            Some(known) if order(known) >= order(&pin) => {}
            _ => {
                newest.insert(pin.name.clone(), pin);
            }
        }
    }
    Ok(newest.into_iter().map(|(name, pin)| (name, pin.target)).collect())
}

/// Pins the new one before the old one goes: a crash leaves both, and the higher number
/// holds.
pub(in crate::backends) async fn point(
    place: &dyn Named,
    name: &str,
    target: &Cid,
) -> Result<(), BackendError> {
    check::name(name)?;
    let mut there = pins_of(place, name).await?;
    there.sort_by_key(order);
    let newest = there.pop();
    let number = match &newest {
        Some(newest) if newest.target == *target => newest.number,
        Some(newest) => newest.number.saturating_add(1),
        None => 1,
    };
    let holder = place.holders().of_name(name, number, target)?;
    let is_listed = newest.as_ref().is_some_and(|newest| newest.holder == holder);
    place.pin_name(&place.holders().pin_name(name), &holder, is_listed).await?;
    there.extend(newest.filter(|_| !is_listed));
    for old in &there {
        place.unpin(&old.holder).await?;
    }
    Ok(())
}

/// Removes a name.
pub(in crate::backends) async fn forget(place: &dyn Named, name: &str) -> Result<(), BackendError> {
    check::name(name)?;
    for pin in pins_of(place, name).await? {
        place.unpin(&pin.holder).await?;
    }
    Ok(())
}

async fn pins_of(place: &dyn Named, name: &str) -> Result<Vec<NamePin>, BackendError> {
    let mut pins = place.name_pins(name).await?;
    pins.retain(|pin| pin.name == name);
    Ok(pins)
}

/// Of pins of one name the last one holds.
fn order(pin: &NamePin) -> (u64, Vec<u8>) {
    (pin.number, pin.target.to_bytes())
}
