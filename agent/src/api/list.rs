//! Listing: what every resource that is served has in common, selection, pages, and the form of the answer.

use std::future::Future;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::{Value, json};

use super::query::Query;
use super::select::{Fields, Labels};
use super::table::Column;
use super::{ApiError, Response, reply};
use crate::pod::node::Node;
use crate::pod::store::{Change, Expired, Snapshot};

/// A resource that can be listed, watched and shown in a table.
pub trait Served: Serialize + Send + Sync + Sized + 'static {
    /// `pods`.
    const RESOURCE: &'static str;
    /// `Pod`.
    const KIND: &'static str;
    /// `v1`.
    const API_VERSION: &'static str;
    /// Of its table.
    const COLUMNS: &'static [Column];
    /// For field selectors, beside metadata.name and metadata.namespace.
    const FIELDS: &'static [&'static str];

    /// Its metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// One of `FIELDS`.
    fn field(&self, name: &str) -> String;
    /// One a column.
    fn cells(&self, now: Timestamp) -> Vec<Value>;
    /// All of them, and what follows.
    fn snapshot(node: &dyn Node) -> impl Future<Output = Result<Snapshot<Self>, ApiError>> + Send;
    /// What happened after a version. Of resources without history: nothing.
    fn since(node: &dyn Node, version: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired>;
}

/// What follows.
pub type Changes<T> = tokio::sync::broadcast::Receiver<Change<T>>;

/// Which objects are meant.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    namespace: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Selection {
    /// From a path's namespace and a query's selectors.
    pub fn parse<T: Served>(namespace: Option<&str>, query: &Query) -> Result<Self, ApiError> {
        let known = ["metadata.name", "metadata.namespace"].iter().chain(T::FIELDS).copied().collect::<Vec<_>>();
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            labels: Labels::parse(query.get("labelSelector").unwrap_or_default())?,
            fields: Fields::parse(query.get("fieldSelector").unwrap_or_default(), &known)?,
        })
    }
    /// Whether this one is meant.
    pub fn matches<T: Served>(&self, object: &T) -> bool {
        let metadata = object.metadata();
        let field = |name: &str| match name {
            "metadata.name" => metadata.name.clone().unwrap_or_default(),
            "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
            other => object.field(other),
        };
        self.namespace.as_ref().is_none_or(|wanted| metadata.namespace.as_ref() == Some(wanted))
            && self.labels.matches(metadata.labels.as_ref())
            && self.fields.matches(field)
    }
}

impl Selection {
    /// Whether this one may have been meant in an earlier state: by what never changes in an object.
    pub fn could_match<T: Served>(&self, object: &T) -> bool {
        let metadata = object.metadata();
        self.namespace.as_ref().is_none_or(|wanted| metadata.namespace.as_ref() == Some(wanted))
            && self.fields.name().is_none_or(|wanted| metadata.name.as_deref() == Some(wanted))
    }
}

/// In which form an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The objects.
    Objects,
    /// `as=Table`, its rows carrying this of their objects.
    Table(RowObject),
}

/// `includeObject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowObject {
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

impl Form {
    /// From the Accept header and the query. The first kind that can be served wins.
    pub fn parse(accept: &str, query: &Query) -> Self {
        let table = accept.split(',').find_map(|kind| {
            let mut parts = kind.split(';').map(str::trim);
            let json = matches!(parts.next(), Some("application/json" | "*/*" | "application/*"));
            let table = parts.any(|part| part == "as=Table");
            let other = kind.contains("as=") && !table;
            (json && !other).then_some(table)
        });
        if table != Some(true) {
            return Self::Objects;
        }
        Self::Table(match query.get("includeObject") {
            Some("Object") => RowObject::Object,
            Some("None") => RowObject::None,
            _ => RowObject::Metadata,
        })
    }

    /// One object in this form, for GET and for watches. With `header`, a table declares its columns.
    pub fn object<T: Served>(self, object: &T, header: bool) -> Value {
        match self {
            Self::Objects => serde_json::to_value(object).unwrap_or_default(),
            Self::Table(include) => {
                let version = object.metadata().resource_version.as_deref().unwrap_or_default();
                table::<T>(&[row(object, include, Timestamp::now())], &json!({ "resourceVersion": version }), header)
            }
        }
    }
}

fn row<T: Served>(object: &T, include: RowObject, now: Timestamp) -> Value {
    let shown = match include {
        RowObject::Metadata => {
            json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.metadata() })
        }
        RowObject::Object => serde_json::to_value(object).unwrap_or_default(),
        RowObject::None => Value::Null,
    };
    json!({ "cells": object.cells(now), "object": shown })
}

fn table<T: Served>(rows: &[Value], metadata: &Value, header: bool) -> Value {
    let columns = header.then(|| T::COLUMNS.iter().map(Column::definition).collect::<Vec<_>>());
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns.unwrap_or_default(), "rows": rows,
    })
}

/// Answers a list.
pub async fn list<T: Served>(node: &dyn Node, namespace: Option<&str>, query: &Query, form: Form) -> Result<Response, ApiError> {
    let selection = Selection::parse::<T>(namespace, query)?;
    let page = Page::parse(query)?;
    let snapshot = T::snapshot(node).await?;
    let mut objects: Vec<Arc<T>> = snapshot.objects.into_iter().filter(|object| selection.matches(&**object)).collect();
    objects.sort_by_cached_key(|object| key(&**object));
    let (objects, rest) = page.cut(objects);
    let mut metadata = json!({ "resourceVersion": snapshot.version.to_string() });
    if let Some((token, remaining)) = rest {
        metadata["continue"] = token.into();
        metadata["remainingItemCount"] = remaining.into();
    }
    Ok(reply::json(&match form {
        Form::Objects => json!({
            "kind": format!("{}List", T::KIND), "apiVersion": T::API_VERSION, "metadata": metadata, "items": objects.iter().map(|o| &**o).collect::<Vec<_>>(),
        }),
        Form::Table(include) => {
            let now = Timestamp::now();
            let rows: Vec<Value> = objects.iter().map(|object| row(&**object, include, now)).collect();
            table::<T>(&rows, &metadata, true)
        }
    }))
}

/// The order of a list: namespace, name, UID (of two pods of one name while the first is ending).
type Key = (String, String, String);

fn key<T: Served>(object: &T) -> Key {
    let metadata = object.metadata();
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    (text(&metadata.namespace), text(&metadata.name), text(&metadata.uid))
}

/// `limit` and `continue`: a page begins after the key that its token names. Lists are not kept between pages.
struct Page {
    limit: usize,
    after: Option<Key>,
}

impl Page {
    fn parse(query: &Query) -> Result<Self, ApiError> {
        let wrong = || ApiError::bad_request("continue key is not valid: list again without it");
        let decode = |token: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
            serde_json::from_slice(&bytes).map_err(|_| wrong())
        };
        Ok(Self { limit: query.number("limit")?.unwrap_or(0), after: query.get("continue").map(decode).transpose()? })
    }

    /// The page, and the token for the next with how many are left.
    fn cut<T: Served>(&self, mut sorted: Vec<Arc<T>>) -> (Vec<Arc<T>>, Option<(String, usize)>) {
        if let Some(after) = &self.after {
            sorted.retain(|object| key(&**object) > *after);
        }
        if self.limit == 0 || sorted.len() <= self.limit {
            return (sorted, None);
        }
        let remaining = sorted.len() - self.limit;
        sorted.truncate(self.limit);
        let last = sorted.last().map(|object| key(&**object));
        let token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&last).unwrap_or_default());
        (sorted, Some((token, remaining)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        true
    )]
    #[case("application/json", false)]
    #[case("", false)]
    #[case("*/*", false)]
    #[case("application/json, application/json;as=Table;v=v1;g=meta.k8s.io", false)]
    #[case("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io", true)]
    #[case("application/vnd.kubernetes.protobuf,application/json;as=Table;v=v1;g=meta.k8s.io", true)]
    fn the_first_form_that_can_be_served(#[case] accept: &str, #[case] is_table: bool) {
        assert_eq!(Form::parse(accept, &Query::default()) != Form::Objects, is_table);
    }
}
