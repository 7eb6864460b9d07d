"""Bottlenecks between encoder and decoder, a module each behind one interface (`audiovq.bottlenecks.base`)."""
