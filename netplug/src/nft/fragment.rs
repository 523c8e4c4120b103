//! A part of the table that changes by itself: sets, chains and elements that it brings along, or has in the table's own sets. The
//! difference of two is one atomic batch, of nothing but what differs.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    rule::Rule,
    set::{self, Key, Kind, Value},
    wire::{Attrs, Batch, NLM_F_APPEND, NLM_F_CREATE, Op},
};

/// So many elements fit into the 64 kB of an attribute with ease.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// See the module's page. Names are unique over all fragments of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) sets: BTreeMap<String, Kind>,
    pub(crate) chains: BTreeMap<String, Vec<Rule>>,
    /// By the set's name.
    pub(crate) elements: BTreeMap<String, BTreeMap<Key, Value>>,
}

impl Fragment {
    /// Puts an element into a set.
    pub(crate) fn add(&mut self, set: &str, key: impl Into<Key>, value: Value) {
        self.elements.entry(set.to_owned()).or_default().insert(key.into(), value);
    }

    /// How many operations a batch needs at most to put it into a table.
    pub(crate) fn size(&self) -> usize {
        let elements = self.elements.values().map(|set| set.len() / ELEMENTS_PER_MESSAGE + 1).sum::<usize>();
        self.sets.len() + elements + self.chains.values().map(|rules| rules.len() + 1).sum::<usize>()
    }
}

/// A fragment before and after.
pub(crate) type Step = (Arc<Fragment>, Arc<Fragment>);

/// What leads from the fragments before to those after. What is referred to is made before, and removed after, what refers to it.
pub(crate) fn change<'a>(batch: &'a mut Batch, table: &'a str, steps: &[Step]) {
    let phases: [fn(&mut Writer<'a>, &Fragment, &Fragment); 8] = [
        Writer::new_sets,
        Writer::new_chains,
        Writer::old_elements,
        Writer::flush_chains,
        Writer::new_elements,
        Writer::new_rules,
        Writer::gone_chains,
        Writer::gone_sets,
    ];
    let mut writer = Writer { batch, table };
    for phase in phases {
        for (old, new) in steps {
            phase(&mut writer, old, new);
        }
    }
}

struct Writer<'a> {
    batch: &'a mut Batch,
    table: &'a str,
}

impl Writer<'_> {
    fn new_sets(&mut self, old: &Fragment, new: &Fragment) {
        for (name, kind) in &new.sets {
            if old.sets.get(name) != Some(kind) {
                self.set(name, *kind);
            }
        }
    }

    fn set(&mut self, name: &str, kind: Kind) {
        let mut set = self.attrs();
        set.str(2, name).u32(10, self.batch.id());
        kind.write(&mut set);
        self.batch.add(Op::NewSet, NLM_F_CREATE, &set);
    }

    fn new_chains(&mut self, old: &Fragment, new: &Fragment) {
        for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
            let mut chain = self.attrs();
            chain.str(3, name);
            self.batch.add(Op::NewChain, NLM_F_CREATE, &chain);
        }
    }

    fn old_elements(&mut self, old: &Fragment, new: &Fragment) {
        for (set, elements) in &old.elements {
            // With the set go its elements.
            if old.sets.contains_key(set) && !new.sets.contains_key(set) {
                continue;
            }
            let kept = new.elements.get(set);
            let gone = elements.iter().filter(|(key, value)| kept.and_then(|kept| kept.get(*key)) != Some(*value));
            self.elements(Op::DelElements, set, gone);
        }
    }

    fn new_elements(&mut self, old: &Fragment, new: &Fragment) {
        for (set, elements) in &new.elements {
            let had = old.elements.get(set);
            let fresh = elements.iter().filter(|(key, value)| had.and_then(|had| had.get(*key)) != Some(*value));
            self.elements(Op::NewElements, set, fresh);
        }
    }

    fn elements<'a>(&mut self, op: Op, set: &str, elements: impl Iterator<Item = (&'a Key, &'a Value)>) {
        let elements: Vec<(&Key, &Value)> = elements.collect();
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let mut attrs = self.attrs();
            attrs.str(2, set).nest(3, |list| chunk.iter().for_each(|(key, value)| set::write(list, op, key, value)));
            self.batch.add(op, if op == Op::NewElements { NLM_F_CREATE } else { 0 }, &attrs);
        }
    }

    fn flush_chains(&mut self, old: &Fragment, new: &Fragment) {
        for (name, rules) in &old.chains {
            if !rules.is_empty() && new.chains.get(name) != Some(rules) {
                let mut all = self.attrs();
                all.str(2, name);
                self.batch.add(Op::DelRule, 0, &all);
            }
        }
    }

    fn new_rules(&mut self, old: &Fragment, new: &Fragment) {
        for (name, rules) in &new.chains {
            if old.chains.get(name) != Some(rules) {
                for rule in rules {
                    self.rule(name, rule);
                }
            }
        }
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        let mut attrs = self.attrs();
        attrs.str(2, chain).bytes(4 | 0x8000, rule.expressions()).bytes(7, &comment(&rule.comment));
        self.batch.add(Op::NewRule, NLM_F_CREATE | NLM_F_APPEND, &attrs);
    }

    fn gone_chains(&mut self, old: &Fragment, new: &Fragment) {
        for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
            let mut chain = self.attrs();
            chain.str(3, name);
            self.batch.add(Op::DelChain, 0, &chain);
        }
    }

    fn gone_sets(&mut self, old: &Fragment, new: &Fragment) {
        for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
            let mut set = self.attrs();
            set.str(2, name);
            self.batch.add(Op::DelSet, 0, &set);
        }
    }

    fn attrs(&self) -> Attrs {
        Attrs::of_table(self.table)
    }
}

/// Userdata of type 0 is a comment: type, length, text with its NUL; 255 bytes in all, at most.
pub(crate) fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(200);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![0, end as u8 + 1];
    bytes.extend(text[..end].bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
#[allow(clippy::panic)]
pub(crate) mod mock {
    use super::*;

    /// A table as the kernel would have it: what isn't there can't be removed, and what is there not be made.
    #[derive(Debug, Default, PartialEq)]
    pub(crate) struct Tables {
        elements: BTreeMap<(String, Key), Value>,
        chains: BTreeMap<String, Vec<Rule>>,
    }

    impl Tables {
        pub(crate) fn apply(&mut self, steps: &[Step]) {
            for (old, _) in steps {
                for (set, elements) in &old.elements {
                    for key in elements.keys() {
                        assert!(self.elements.remove(&(set.clone(), key.clone())).is_some(), "{set} {key:?} isn't there");
                    }
                }
                old.chains.keys().for_each(|chain| assert!(self.chains.remove(chain).is_some(), "{chain} isn't there"));
            }
            steps.iter().for_each(|(_, new)| self.put(new));
        }

        pub(crate) fn put(&mut self, part: &Fragment) {
            for (set, elements) in &part.elements {
                for (key, value) in elements {
                    assert!(self.elements.insert((set.clone(), key.clone()), value.clone()).is_none(), "{set} {key:?} twice");
                }
            }
            let chains = part.chains.iter().map(|(name, rules)| (name.clone(), rules.clone()));
            chains.for_each(|(name, rules)| assert!(self.chains.insert(name, rules).is_none()));
        }
    }
}
