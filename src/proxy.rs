//! Flows: intercept, inspect, judge, act, record.
