BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE artifacts (
	job_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	media_type TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 TEXT NOT NULL, 
	CONSTRAINT pk_artifacts PRIMARY KEY (job_id, name), 
	CONSTRAINT fk_artifacts_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "artifacts" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy','student/weights.safetensors','application/octet-stream','jobs/1/w',12,'0000000000000000000000000000000000000000000000000000000000000000');
CREATE TABLE audit (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	action TEXT NOT NULL, 
	object TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT pk_audit PRIMARY KEY (id), 
	CONSTRAINT fk_audit_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "audit" VALUES('audit_01m81n5mxy9fxt9p7dgb9e81ta','default','test','webhooks.create','webhook_01m81n5mxvjt9tyzp20g912rws','',1795352089535000);
INSERT INTO "audit" VALUES('audit_01m81n5mzm5na9ah2d4t1qe0by','default','test','jobs.create','job_01m81n5mzfxj4p0qw2vtrqbbhy','',1795352089589000);
INSERT INTO "audit" VALUES('audit_01m81n5n0tykbdh1jh8sh1c32k','default','test','jobs.create','job_01m81n5n0s84ww2nrewhet1f3k','',1795352089626000);
INSERT INTO "audit" VALUES('audit_01m81n5n10n6ej8857asmxx79t','default','test','jobs.create','job_01m81n5n10n6ej8857asmxx79s','',1795352089633000);
INSERT INTO "audit" VALUES('audit_01m81n5n13dnn449rnb4saqqsz','default','test','uploads.create','upl_01m81n5n110ndmfj7c021gx475','',1795352089635000);
INSERT INTO "audit" VALUES('audit_01m81n5n15yxab4pa2r78akkvw','default','test','datasets.create','ds_01m81n5n15yxab4pa2r78akkvv','',1795352089637000);
INSERT INTO "audit" VALUES('audit_01m81n5n18nb88xd6fmrcq7a09','alice','shell','tenants.create','alice','',1795352089640000);
INSERT INTO "audit" VALUES('audit_01m81n5n1925erjma228w00z0x','alice','shell','keys.create','key_01m81n5n18nb88xd6fmrcq7a0a','',1795352089641000);
CREATE TABLE datasets (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	name TEXT NOT NULL, 
	spec JSON NOT NULL, 
	facts JSON NOT NULL, 
	deleted_at BIGINT, 
	CONSTRAINT pk_datasets PRIMARY KEY (id), 
	CONSTRAINT fk_datasets_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "datasets" VALUES('ds_01m81n5n15yxab4pa2r78akkvv','default',1795352089637000,'mine','{"name": "d", "options": {}}','{"classes": ["a", "b"]}',NULL);
CREATE TABLE deliveries (
	id TEXT NOT NULL, 
	webhook_id TEXT NOT NULL, 
	job_id TEXT, 
	seq INTEGER, 
	kind TEXT NOT NULL, 
	body TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	since BIGINT NOT NULL, 
	attempts INTEGER NOT NULL, 
	next_at BIGINT, 
	delivered_at BIGINT, 
	dead_at BIGINT, 
	status INTEGER, 
	error TEXT NOT NULL, 
	CONSTRAINT pk_deliveries PRIMARY KEY (id), 
	CONSTRAINT fk_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id), 
	CONSTRAINT fk_deliveries_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_deliveries_webhook_id_job_id_seq UNIQUE (webhook_id, job_id, seq), 
	CONSTRAINT ck_deliveries_next CHECK ((next_at IS NULL) = (delivered_at IS NOT NULL OR dead_at IS NOT NULL)), 
	CONSTRAINT ck_deliveries_event CHECK ((job_id IS NULL) = (seq IS NULL))
);
INSERT INTO "deliveries" VALUES('delivery_01m81n5n0qymwp01c7yht5ktr9','webhook_01m81n5mxvjt9tyzp20g912rws','job_01m81n5mzfxj4p0qw2vtrqbbhy',11,'JOB_SUCCEEDED','{"type": "JOB_SUCCEEDED", "timestamp": "2026-11-22T12:54:49.623000Z", "data": {"id": "job_01m81n5mzfxj4p0qw2vtrqbbhy", "state": "SUCCEEDED", "reason": "", "seq": 11, "links": {"self": "/v1/jobs/job_01m81n5mzfxj4p0qw2vtrqbbhy", "events": "/v1/jobs/job_01m81n5mzfxj4p0qw2vtrqbbhy/events", "artifacts": "/v1/jobs/job_01m81n5mzfxj4p0qw2vtrqbbhy/artifacts"}}}',1795352089624000,1795352089624000,0,1795352089624000,NULL,NULL,NULL,'');
CREATE TABLE events (
	job_id TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	data JSON NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (job_id, seq), 
	CONSTRAINT fk_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',1,'JOB_QUEUED','{}',1795352089588000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',2,'JOB_CLAIMED','{"claim": 1}',1795352089596000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',3,'PHASE_ENTERED','{"phase": "teacher"}',1795352089599000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',4,'PHASE_FINISHED','{"phase": "teacher", "result": {"name": "small_resnet"}}',1795352089602000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',5,'PHASE_ENTERED','{"phase": "survey"}',1795352089603000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',6,'PHASE_FINISHED','{"phase": "survey", "result": {"space": "s"}}',1795352089604000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',7,'TRIAL_PROPOSED','{"trial": "trial_01m81n5n06gsstxqe47n52mjj2", "number": 0, "choices": {"a": 1}, "cost": {"macs": 3}}',1795352089608000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',8,'TRIAL_STARTED','{"trial": "trial_01m81n5n06gsstxqe47n52mjj2", "number": 0, "rung": 0, "attempt": 1}',1795352089611000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',9,'TRIAL_SCORED','{"trial": "trial_01m81n5n06gsstxqe47n52mjj2", "number": 0, "rung": 0, "step": 10, "accuracy": 0.5, "kl": 0.1, "cached": false, "last": true, "worker": null}',1795352089613000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',10,'ARTIFACT_KEPT','{"name": "student/weights.safetensors", "bytes": 12, "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}',1795352089618000);
INSERT INTO "events" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',11,'JOB_SUCCEEDED','{"reason": ""}',1795352089623000);
INSERT INTO "events" VALUES('job_01m81n5n0s84ww2nrewhet1f3k',1,'JOB_QUEUED','{}',1795352089626000);
INSERT INTO "events" VALUES('job_01m81n5n0s84ww2nrewhet1f3k',2,'JOB_CLAIMED','{"claim": 1}',1795352089629000);
INSERT INTO "events" VALUES('job_01m81n5n0s84ww2nrewhet1f3k',3,'PHASE_ENTERED','{"phase": "teacher"}',1795352089631000);
INSERT INTO "events" VALUES('job_01m81n5n10n6ej8857asmxx79s',1,'JOB_QUEUED','{}',1795352089632000);
CREATE TABLE idempotency (
	tenant TEXT NOT NULL, 
	route TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	object TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT pk_idempotency PRIMARY KEY (tenant, route, "key"), 
	CONSTRAINT fk_idempotency_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "idempotency" VALUES('default','uploads.create','up','f','upl_01m81n5n110ndmfj7c021gx475',1795352089634000);
CREATE TABLE "jobs" (
	id TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	spec JSON NOT NULL, 
	priority INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	started_at BIGINT, 
	ended_at BIGINT, 
	cancel_requested_at BIGINT, 
	phase TEXT, 
	owner TEXT, 
	token INTEGER NOT NULL, 
	claims INTEGER NOT NULL, 
	fruitless INTEGER NOT NULL, 
	lease_until BIGINT, 
	events INTEGER NOT NULL, 
	idempotency_key TEXT, 
	fingerprint TEXT, 
	tenant TEXT DEFAULT 'default' NOT NULL, 
	charged_at BIGINT, revision INTEGER DEFAULT '0' NOT NULL, pause_requested_at BIGINT, parent TEXT, deleted_at BIGINT, traceparent TEXT, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT ck_jobs_state CHECK (state IN ('QUEUED', 'PREPARING', 'RUNNING', 'FINALIZING', 'SUCCEEDED', 'FAILED', 'CANCELLED')), 
	CONSTRAINT ck_jobs_end CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))), 
	CONSTRAINT ck_jobs_lease CHECK (ended_at IS NULL OR lease_until IS NULL), 
	CONSTRAINT fk_jobs_tenant FOREIGN KEY(tenant) REFERENCES tenants (name), 
	CONSTRAINT uq_jobs_tenant_idempotency_key UNIQUE (tenant, idempotency_key)
);
INSERT INTO "jobs" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy','SUCCEEDED','','{"version": 1, "task": "classification", "teacher": {"name": "t", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "d", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "structure": {"steps": 600, "press": 0.8, "strength": 10.0, "weighting": 0.5, "threshold": 0.1, "blocks": [], "sequential": false, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [0.8], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {"team": "vision"}, "priority": 0}',0,1795352089587000,1795352089595000,1795352089623000,NULL,'survey','node-1:10',1,1,0,NULL,11,'nightly','f1','default',NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_01m81n5n0s84ww2nrewhet1f3k','PREPARING','','{"version": 1, "task": "classification", "teacher": {"name": "t", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "d", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "structure": {"steps": 600, "press": 0.8, "strength": 10.0, "weighting": 0.5, "threshold": 0.1, "blocks": [], "sequential": false, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [0.8], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 0}',0,1795352089625000,1795352089629000,NULL,NULL,'teacher','node-1:10',1,1,1,2795352089629000,3,NULL,NULL,'default',1795352089629000,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_01m81n5n10n6ej8857asmxx79s','QUEUED','','{"version": 1, "task": "classification", "teacher": {"name": "t", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "d", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "structure": {"steps": 600, "press": 0.8, "strength": 10.0, "weighting": 0.5, "threshold": 0.1, "blocks": [], "sequential": false, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [0.8], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 0}',0,1795352089632000,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,1,NULL,NULL,'default',NULL,0,NULL,NULL,NULL,NULL);
CREATE TABLE keys (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	name TEXT NOT NULL, 
	scope TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT, 
	revoked_at BIGINT, 
	last_used_at BIGINT, 
	CONSTRAINT pk_keys PRIMARY KEY (id), 
	CONSTRAINT fk_keys_tenant FOREIGN KEY(tenant) REFERENCES tenants (name), 
	CONSTRAINT uq_keys_digest UNIQUE (digest), 
	CONSTRAINT ck_keys_scope CHECK (scope IN ('read', 'submit', 'admin'))
);
INSERT INTO "keys" VALUES('key_01m81n5n18nb88xd6fmrcq7a0a','alice','notebook','submit','d2728a78ac3a6c96ab402a54718561385282e1e73f82f090d453d07e918f760d',1795352089641000,NULL,NULL,NULL);
CREATE TABLE logs (
	job_id TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	level TEXT NOT NULL, 
	logger TEXT NOT NULL, 
	trial TEXT, 
	message TEXT NOT NULL, 
	CONSTRAINT pk_logs PRIMARY KEY (job_id, seq), 
	CONSTRAINT fk_logs_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "logs" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',1,1795352089116000,'WARNING','stillhouse.session','trial_01m81n5n06gsstxqe47n52mjj2','slow');
CREATE TABLE phases (
	job_id TEXT NOT NULL, 
	phase TEXT NOT NULL, 
	started_at BIGINT NOT NULL, 
	ended_at BIGINT, 
	result JSON, 
	CONSTRAINT pk_phases PRIMARY KEY (job_id, phase), 
	CONSTRAINT fk_phases_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT ck_phases_result CHECK ((ended_at IS NULL) = (result IS NULL))
);
INSERT INTO "phases" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy','teacher',1795352089598000,1795352089601000,'{"name": "small_resnet"}');
INSERT INTO "phases" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy','survey',1795352089603000,1795352089604000,'{"space": "s"}');
INSERT INTO "phases" VALUES('job_01m81n5n0s84ww2nrewhet1f3k','teacher',1795352089630000,NULL,NULL);
CREATE TABLE scores (
	trial_id TEXT NOT NULL, 
	rung INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	accuracy FLOAT NOT NULL, 
	kl FLOAT NOT NULL, 
	seconds FLOAT NOT NULL, 
	at BIGINT NOT NULL, cached BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_scores PRIMARY KEY (trial_id, rung), 
	CONSTRAINT fk_scores_trial_id FOREIGN KEY(trial_id) REFERENCES trials (id)
);
INSERT INTO "scores" VALUES('trial_01m81n5n06gsstxqe47n52mjj2',0,10,0.5,0.1,1.0,1795352089613000,0);
CREATE TABLE tallies (
	name TEXT NOT NULL, 
	value BIGINT NOT NULL, 
	CONSTRAINT pk_tallies PRIMARY KEY (name)
);
CREATE TABLE teachers (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	name TEXT NOT NULL, 
	spec JSON NOT NULL, 
	facts JSON NOT NULL, 
	upload TEXT, 
	deleted_at BIGINT, 
	CONSTRAINT pk_teachers PRIMARY KEY (id), 
	CONSTRAINT fk_teachers_tenant FOREIGN KEY(tenant) REFERENCES tenants (name), 
	CONSTRAINT fk_teachers_upload FOREIGN KEY(upload) REFERENCES uploads (id)
);
CREATE TABLE tenants (
	name TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	served_at BIGINT, 
	queued_jobs BIGINT, 
	concurrent_trials BIGINT, 
	cpu_seconds_per_day BIGINT, 
	gpu_seconds_per_day BIGINT, 
	stored_bytes BIGINT, 
	CONSTRAINT pk_tenants PRIMARY KEY (name)
);
INSERT INTO "tenants" VALUES('default',1795352089505000,1795352089629000,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tenants" VALUES('alice',1795352089640000,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE trials (
	id TEXT NOT NULL, 
	job_id TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	choices JSON NOT NULL, 
	origin JSON NOT NULL, 
	cost JSON NOT NULL, 
	extra JSON, 
	state TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	reason TEXT NOT NULL, 
	CONSTRAINT pk_trials PRIMARY KEY (id), 
	CONSTRAINT fk_trials_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_trials_job_id_number UNIQUE (job_id, number), 
	CONSTRAINT uq_trials_job_id_key UNIQUE (job_id, "key"), 
	CONSTRAINT ck_trials_state CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'STOPPED', 'FAILED', 'CANCELLED'))
);
INSERT INTO "trials" VALUES('trial_01m81n5n06gsstxqe47n52mjj2','job_01m81n5mzfxj4p0qw2vtrqbbhy',0,'key-a','{"a": 1}','{"a": 2}','{"macs": 3}',NULL,'COMPLETED',0,'');
CREATE TABLE uploads (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 TEXT NOT NULL, 
	completed_at BIGINT, 
	deleted_at BIGINT, 
	CONSTRAINT pk_uploads PRIMARY KEY (id), 
	CONSTRAINT fk_uploads_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "uploads" VALUES('upl_01m81n5n110ndmfj7c021gx475','default',1795352089635000,5,'2222222222222222222222222222222222222222222222222222222222222222',NULL,NULL);
CREATE TABLE usage (
	job_id TEXT NOT NULL, 
	day INTEGER NOT NULL, 
	cpu_seconds FLOAT NOT NULL, 
	gpu_seconds FLOAT NOT NULL, 
	CONSTRAINT pk_usage PRIMARY KEY (job_id, day), 
	CONSTRAINT fk_usage_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "usage" VALUES('job_01m81n5mzfxj4p0qw2vtrqbbhy',20779,0.05,0.0);
CREATE TABLE webhooks (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	url TEXT NOT NULL, 
	secret TEXT NOT NULL, 
	kinds JSON NOT NULL, 
	disabled_at BIGINT, 
	deleted_at BIGINT, 
	CONSTRAINT pk_webhooks PRIMARY KEY (id), 
	CONSTRAINT fk_webhooks_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "webhooks" VALUES('webhook_01m81n5mxvjt9tyzp20g912rws','default',1795352089534000,'https://hooks.example.com/a','whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=','["JOB_SUCCEEDED"]',NULL,NULL);
CREATE INDEX ix_keys_of_tenant ON keys (tenant, id);
CREATE INDEX ix_jobs_newest ON jobs (created_at, id);
CREATE INDEX ix_jobs_open ON jobs (priority, created_at, id) WHERE ended_at IS NULL;
CREATE INDEX ix_jobs_of_tenant ON jobs (tenant, created_at, id);
CREATE INDEX ix_jobs_turn ON jobs (tenant, priority, created_at, id) WHERE ended_at IS NULL;
CREATE INDEX ix_jobs_leased ON jobs (tenant) WHERE lease_until IS NOT NULL;
CREATE INDEX ix_usage_day ON usage (day);
CREATE INDEX ix_audit_newest ON audit (tenant, at, id);
CREATE TRIGGER audit_stays_update BEFORE update ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
CREATE TRIGGER audit_stays_delete BEFORE delete ON audit BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
CREATE INDEX ix_trials_by_state ON trials (job_id, state);
CREATE INDEX ix_scores_at ON scores (at);
CREATE INDEX ix_uploads_of_tenant ON uploads (tenant, created_at, id);
CREATE INDEX ix_teachers_of_tenant ON teachers (tenant, created_at, id);
CREATE INDEX ix_datasets_of_tenant ON datasets (tenant, created_at, id);
CREATE INDEX ix_webhooks_of_tenant ON webhooks (tenant, created_at, id);
CREATE INDEX ix_deliveries_due ON deliveries (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX ix_deliveries_dead ON deliveries (dead_at) WHERE dead_at IS NOT NULL;
CREATE INDEX ix_deliveries_newest ON deliveries (webhook_id, created_at, id);
COMMIT;
