//! Which life of a volume may change its names at a backend, and delete there.
//!
//! A name `volumes/<volume>/life-<epoch>-<nonce>` is a claim; the highest one holds.
//! A life that wants to write puts a claim above all that are there and looks again:
//! of two that do so at once at least one sees the other. Whoever sees a higher one
//! writes nothing more there until it is mounted again. Taken lazily, before the
//! first change, so that a look at an old copy of a volume fences nobody.

use std::collections::HashMap;

use parking_lot::Mutex;
use uuid::Uuid;

use super::ReplicationError;
use super::files::Source;
use crate::types::{BackendId, Cid, VolumeId, cid};

/// The claims of one opening of a volume.
pub struct Fence {
    volume: VolumeId,
    nonce: String,
    /// What a claim points to: says who.
    says: Cid,
    claims: Mutex<HashMap<BackendId, Claim>>,
}

#[derive(Clone)]
enum Claim {
    Held(u64),
    Lost(u64),
}

impl Fence {
    /// For an opening of `volume`.
    #[must_use]
    pub fn new(volume: VolumeId) -> Self {
        let nonce = Uuid::new_v4().simple().to_string();
        Self { volume, says: cid::of_raw(nonce.as_bytes()), nonce, claims: Mutex::default() }
    }

    fn prefix(&self) -> String {
        format!("volumes/{}/life-", self.volume)
    }

    fn name(&self, epoch: u64) -> String {
        format!("{}{epoch:020}-{}", self.prefix(), self.nonce)
    }

    /// Epoch and nonce of a name.
    fn parse(&self, name: &str) -> Option<(u64, String)> {
        let (epoch, nonce) = name.strip_prefix(&self.prefix())?.split_once('-')?;
        Some((epoch.parse().ok()?, nonce.to_owned()))
    }

    /// Claims the backend, or looks whether the claim still holds.
    ///
    /// # Errors
    /// `Fenced`: another life has a higher claim. Of the backend: nothing is known.
    pub(super) fn hold(&self, id: &BackendId, source: &Source<'_>) -> Result<(), ReplicationError> {
        let backend = source.backend;
        let known = self.claims.lock().get(id).cloned();
        let look = || -> Result<Vec<(u64, String)>, ReplicationError> {
            let names = source.call(backend.names(&self.prefix()))?;
            Ok(names.iter().filter_map(|(name, _)| self.parse(name)).collect())
        };
        if let Some(Claim::Lost(epoch)) = known {
            return Err(Self::fenced(source, epoch));
        }
        let there = look()?;
        let highest = there.iter().max().cloned();
        let epoch = match known {
            Some(Claim::Held(epoch)) if highest.as_ref() == Some(&(epoch, self.nonce.clone())) => {
                return Ok(());
            }
            Some(Claim::Held(epoch)) => epoch,
            _ => highest.as_ref().map_or(0, |(epoch, _)| *epoch).saturating_add(1),
        };
        let mine = (epoch, self.nonce.clone());
        if highest.is_none_or(|highest| highest < mine) {
            // The first time; or all names are gone, as at a place that was emptied.
            let name = self.name(epoch);
            source.call(backend.put_name(&name, &self.says))?;
        }
        let there = look()?;
        if let Some((higher, _)) = there.iter().filter(|claim| **claim > mine).max() {
            self.claims.lock().insert(id.clone(), Claim::Lost(*higher));
            return Err(Self::fenced(source, *higher));
        }
        self.claims.lock().insert(id.clone(), Claim::Held(epoch));
        for (epoch, nonce) in there.iter().filter(|claim| **claim < mine) {
            let old = format!("{}{epoch:020}-{nonce}", self.prefix());
            source.call(backend.delete_name(&old))?;
        }
        Ok(())
    }

    /// Whether this life claimed the backend and still holds it. Takes no claim: a look at
    /// an old copy of a volume fences nobody.
    ///
    /// # Errors
    /// Of the backend: nothing is known.
    pub(super) fn holds(
        &self,
        id: &BackendId,
        source: &Source<'_>,
    ) -> Result<bool, ReplicationError> {
        let Some(Claim::Held(epoch)) = self.claims.lock().get(id).cloned() else {
            return Ok(false);
        };
        let names = source.call(source.backend.names(&self.prefix()))?;
        let highest = names.iter().filter_map(|(name, _)| self.parse(name)).max();
        Ok(highest == Some((epoch, self.nonce.clone())))
    }

    fn fenced(source: &Source<'_>, epoch: u64) -> ReplicationError {
        ReplicationError::Fenced { location: source.backend.location(), epoch }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::{Backend, MemoryBackend};
    use crate::runtime::Bridge;

    struct Place(Arc<dyn Backend>, Bridge);

    impl Place {
        fn new() -> Self {
            Self(Arc::new(MemoryBackend::new("m")), Bridge::start(1).unwrap())
        }

        fn source(&self) -> Source<'_> {
            Source { backend: &self.0, bridge: &self.1 }
        }

        fn hold(&self, fence: &Fence) -> Result<(), ReplicationError> {
            fence.hold(&"a".parse().unwrap(), &self.source())
        }

        fn names(&self) -> Vec<(String, Cid)> {
            self.source().call(self.0.names("volumes/")).unwrap()
        }
    }

    #[test]
    fn the_later_life_holds_and_the_earlier_one_writes_nothing_more() {
        let (place, volume) = (Place::new(), VolumeId::random());
        let (first, second) = (Fence::new(volume), Fence::new(volume));
        place.hold(&first).unwrap();
        place.hold(&first).unwrap();
        place.hold(&second).unwrap();
        for _ in 0..2 {
            let refused = place.hold(&first).unwrap_err();
            assert!(matches!(refused, ReplicationError::Fenced { epoch: 2, .. }), "{refused}");
        }
        place.hold(&second).unwrap();
        assert_eq!(place.names().len(), 1, "old claims go: {:?}", place.names());
        // Another volume there is nobody's life.
        place.hold(&Fence::new(VolumeId::random())).unwrap();
        place.hold(&second).unwrap();
    }

    #[test]
    fn of_two_that_claim_at_once_one_sees_the_other() {
        let (place, volume) = (Place::new(), VolumeId::random());
        let lives = [Fence::new(volume), Fence::new(volume)];
        // Both looked before either claimed.
        for life in &lives {
            place.source().call(place.0.put_name(&life.name(1), &life.says)).unwrap();
            life.claims.lock().insert("a".parse().unwrap(), Claim::Held(1));
        }
        let held: Vec<bool> = lives.iter().map(|life| place.hold(life).is_ok()).collect();
        assert_eq!(held.iter().filter(|held| **held).count(), 1, "{held:?}");
    }

    #[test]
    fn a_place_that_was_emptied_is_claimed_again() {
        let place = Place::new();
        let life = Fence::new(VolumeId::random());
        place.hold(&life).unwrap();
        let names = place.names();
        place.source().call(place.0.delete_name(&names[0].0)).unwrap();
        place.hold(&life).unwrap();
        assert_eq!(place.names(), names);
    }
}
