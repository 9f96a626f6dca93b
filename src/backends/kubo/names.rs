//! Names: direct pins that are called by them. See `holder` for what is pinned.

use std::collections::BTreeMap;

use super::KuboBackend;
use super::holder::NamePin;
use super::listing::Pin;
use crate::backends::{BackendError, check};
use crate::types::Cid;

impl KuboBackend {
    /// Pins of names that begin with `prefix`.
    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError> {
        let filter = self.holders.pin_name(prefix);
        // Kubo finds it anywhere in a name; what else it finds is left out here.
        let arguments =
            [("type", "direct"), ("stream", "true"), ("names", "true"), ("name", filter.as_str())];
        let mut answer = self.rpc.send("pin/ls", &arguments, None).await?;
        let mut found = Vec::new();
        while let Some(pin) = answer.line::<Pin>().await? {
            if !pin.name.starts_with(&filter) {
                continue;
            }
            let holder = pin.cid.parse::<Cid>().ok();
            match holder.and_then(|holder| self.holders.name_of(&pin.name, &holder)) {
                Some(name) => found.push(name),
                None => {
                    tracing::warn!(
                        cid = pin.cid,
                        name = pin.name,
                        "a pin that is called like a name of ours is ignored"
                    );
                }
            }
        }
        Ok(found)
    }

    /// Names that begin with `prefix`, sorted, with their CIDs.
    pub(super) async fn all_names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let mut newest: BTreeMap<String, NamePin> = BTreeMap::new();
        for pin in self.name_pins(prefix).await? {
            match newest.get(&pin.name) {
                Some(known) if order(known) >= order(&pin) => {}
                _ => {
                    newest.insert(pin.name.clone(), pin);
                }
            }
        }
        Ok(newest.into_iter().map(|(name, pin)| (name, pin.target)).collect())
    }

    /// Pins the new one before the old one goes: a crash leaves both, and the higher
    /// number holds.
    pub(super) async fn point(&self, name: &str, target: &Cid) -> Result<(), BackendError> {
        check::name(name)?;
        let mut there = self.pins_of(name).await?;
        there.sort_by_key(order);
        let newest = there.pop();
        if let Some(newest) = newest {
            if newest.target != *target {
                let number = newest.number.saturating_add(1);
                self.pin_name(name, number, target).await?;
                there.push(newest);
            }
        } else {
            self.pin_name(name, 1, target).await?;
        }
        for old in &there {
            self.unpin(&old.holder).await?;
        }
        Ok(())
    }

    pub(super) async fn forget(&self, name: &str) -> Result<(), BackendError> {
        check::name(name)?;
        for pin in self.pins_of(name).await? {
            self.unpin(&pin.holder).await?;
        }
        Ok(())
    }

    async fn pins_of(&self, name: &str) -> Result<Vec<NamePin>, BackendError> {
        let mut pins = self.name_pins(name).await?;
        pins.retain(|pin| pin.name == name);
        Ok(pins)
    }

    async fn pin_name(&self, name: &str, number: u64, target: &Cid) -> Result<(), BackendError> {
        let holder = self.holders.of_name(name, number, target)?.to_string();
        let pin_name = self.holders.pin_name(name);
        let arguments = [
            ("arg", holder.as_str()),
            ("recursive", "false"),
            ("name", &pin_name),
            ("fast-provide-root", "false"),
            ("fast-provide-dag", "false"),
        ];
        self.rpc.send("pin/add", &arguments, None).await?.whole(1 << 16).await.map(drop)
    }
}

/// Of pins of one name the last one holds.
fn order(pin: &NamePin) -> (u64, Vec<u8>) {
    (pin.number, pin.target.to_bytes())
}
