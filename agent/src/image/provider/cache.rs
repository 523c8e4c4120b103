//! Answers of credential providers, as long as they count. Pure: the time is said.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::super::auth::Credential;

/// Whose pull it is, as far as an answer depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Who {
    /// Of the service account: namespace, name, UID, annotations.
    pub account: Option<(String, String, String, BTreeMap<String, String>)>,
    /// Of the pod and its token, where an answer counts for that alone.
    pub token: Option<(String, [u8; 32])>,
}

/// What an answer counts for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One image.
    Image(String),
    /// All images of a registry.
    Registry(String),
    /// All images.
    Global,
}

impl Scope {
    /// By the answer's `cacheKeyType`.
    pub fn named(name: &str, image: &str) -> Option<Self> {
        match name {
            "Image" => Some(Self::Image(image.to_owned())),
            "Registry" => Some(Self::Registry(registry(image).to_owned())),
            "Global" => Some(Self::Global),
            _ => None,
        }
    }
}

fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<(Scope, Who), (Instant, Vec<Credential>)>,
}

impl Cache {
    /// What counts for the image now: the narrowest first.
    pub fn find(&mut self, image: &str, who: &Who, now: Instant) -> Option<Vec<Credential>> {
        self.entries.retain(|_, (until, _)| *until > now);
        let scopes = [Scope::Image(image.to_owned()), Scope::Registry(registry(image).to_owned()), Scope::Global];
        scopes.into_iter().find_map(|scope| self.entries.get(&(scope, who.clone())).map(|(_, logins)| logins.clone()))
    }

    /// Keeps an answer for so long.
    pub fn keep(&mut self, scope: Scope, who: Who, logins: Vec<Credential>, now: Instant, long: Duration) {
        if let Some(until) = now.checked_add(long).filter(|_| !long.is_zero()) {
            self.entries.insert((scope, who), (until, logins));
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Image", "a.b/x", true)]
    #[case("Image", "a.b/y", false)]
    #[case("Registry", "a.b/y", true)]
    #[case("Registry", "c.d/x", false)]
    #[case("Global", "c.d/x", true)]
    fn an_answer_counts_for_what_it_says(#[case] kind: &str, #[case] image: &str, #[case] found: bool) {
        let (mut cache, now, who) = (Cache::default(), Instant::now(), Who::default());
        let scope = Scope::named(kind, "a.b/x").unwrap();
        cache.keep(scope, who.clone(), vec![Credential::basic("a.b", "u", "p")], now, Duration::from_secs(10));
        assert_eq!(cache.find(image, &who, now).is_some(), found);
        let other = Who { account: Some(("ns".into(), "sa".into(), "u".into(), BTreeMap::new())), token: None };
        assert_eq!(cache.find(image, &other, now), None);
        assert_eq!(cache.find(image, &who, now + Duration::from_secs(11)), None);
    }

    #[test]
    fn an_answer_for_no_time_is_not_kept() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.keep(Scope::Global, Who::default(), Vec::new(), now, Duration::ZERO);
        assert_eq!(cache.find("a.b/x", &Who::default(), now), None);
        assert_eq!(Scope::named("Nonsense", "a.b/x"), None);
    }
}
