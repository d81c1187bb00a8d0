"""What OpenTelemetry and the log are told, at a price nobody notices."""
