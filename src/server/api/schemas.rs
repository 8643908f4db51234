//! What the description of the API says of fields that are of one form or another.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, Schema, SchemaType, Type};
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, RefOr};

use super::request::{MAX_BIAS, MAX_SEQUENCES, MAX_STOPS};

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamEvent {
    /// A `Completion` as JSON; at the end `[DONE]`, or an `ErrorBody` if it fails.
    pub data: String,
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).min_length(Some(1))
}

fn ids() -> ArrayBuilder {
    let id = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0))
        .maximum(Some(u64::from(u32::MAX)));
    ArrayBuilder::new().items(id)
}

fn one_of(forms: Vec<RefOr<Schema>>, or_null: bool) -> RefOr<Schema> {
    let null = or_null.then(|| ObjectBuilder::new().schema_type(Type::Null).into());
    let one_of = forms.into_iter().chain(null).fold(OneOfBuilder::new(), OneOfBuilder::item);
    one_of.into()
}

/// A list of token ids.
pub fn ids_schema() -> RefOr<Schema> {
    ids().into()
}

/// The same, or null.
pub fn ids_or_null_schema() -> RefOr<Schema> {
    one_of(vec![ids().into()], true)
}

/// A text or token ids.
pub fn prompt_schema() -> RefOr<Schema> {
    one_of(vec![text().into(), ids().min_items(Some(1)).into()], false)
}

/// The same, or several of either kind.
pub fn prompts_schema() -> RefOr<Schema> {
    let list = |items: RefOr<Schema>| {
        let most = Some(MAX_SEQUENCES);
        ArrayBuilder::new().items(items).min_items(Some(1)).max_items(most).into()
    };
    let (texts, id_lists) = (list(text().into()), list(ids().min_items(Some(1)).into()));
    one_of(vec![text().into(), ids().min_items(Some(1)).into(), texts, id_lists], false)
}

pub fn stop_schema() -> RefOr<Schema> {
    let list = ArrayBuilder::new().items(text()).max_items(Some(MAX_STOPS));
    one_of(vec![text().into(), list.into()], true)
}

/// Numbers by token id.
pub fn bias_schema() -> RefOr<Schema> {
    let bias = ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(-MAX_BIAS))
        .maximum(Some(MAX_BIAS));
    let names = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]+$"));
    let map = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .property_names(Some(names))
        .additional_properties(Some(AdditionalProperties::from(bias)));
    map.into()
}
